"""The trainer and what it stands on: run folders, optimizers, checkpoints, logs and the machine."""
