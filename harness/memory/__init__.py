"""Precision and activation checkpointing."""
