"""Policies that name which components stay frozen."""
