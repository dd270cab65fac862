"""Bases whose frozen linear layers are held in fewer bits."""
