"""Policies that name which weights stay frozen."""
