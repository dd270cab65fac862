"""Sweeps: studies, the trials they ask for, who samples them, and what runs them side by side."""
