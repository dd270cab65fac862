"""`python -m harness.report`: what the trials of sweeps say together, and how sure it is."""
