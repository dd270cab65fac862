"""Rows as people write them to the canonical row."""
