"""The model that a run starts from."""
