"""Training of the published networks in PyTorch: cohorts, losses, schedules, checkpoints."""
