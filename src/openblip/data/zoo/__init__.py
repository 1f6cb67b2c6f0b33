"""The public data sets that are known by name."""
