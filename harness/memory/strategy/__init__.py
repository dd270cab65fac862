"""How the processes of a run share weights, gradients and optimiser state: one Lightning strategy a file."""
