"""Low-rank adapters in training."""
