"""The training loop, and its batches, hooks, checkpoints, devices and processes."""
