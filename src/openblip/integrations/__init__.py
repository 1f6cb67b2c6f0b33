"""Other libraries' names for what OpenBLIP does."""
