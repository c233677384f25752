"""What a training run is: experiment, optimiser, state, checkpoint."""
