"""What is known of all rows before training: tokens, sizes, lengths; built in parallel, kept on disk."""
