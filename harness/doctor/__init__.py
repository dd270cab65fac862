"""`python -m harness.doctor`: what this machine can run, and what a run would find in its data, without training."""
