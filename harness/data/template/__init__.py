"""Canonical rows to token ids: the chat template, agent formats, loss weights, truncation, position ids."""
