"""OpenBLIP's own model folder."""
