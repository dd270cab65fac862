"""Views of metrics.jsonl: console, TensorBoard, Weights & Biases, plots."""
