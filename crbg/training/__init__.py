"""The training loop, its batches, hooks, checkpoints, devices and processes."""
