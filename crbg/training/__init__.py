"""The training loop, with batches, hooks, checkpoints, devices and distributed training."""
