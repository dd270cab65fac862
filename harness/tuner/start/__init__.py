"""Starts of LoRA that are computed: from a layer's weights, from data, or from gradients. One file a method."""
