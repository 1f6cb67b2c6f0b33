"""Low-rank adapters in files."""
