"""Training: the state, one step, the loop, evaluation and the optimizer."""
