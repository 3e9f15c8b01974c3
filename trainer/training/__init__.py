"""Training: the loop, its steps and its processes, and the checkpoints to go on from."""
