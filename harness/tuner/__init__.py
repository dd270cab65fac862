"""Ways to make a model trainable: full fine-tuning and adapters, one file each."""
