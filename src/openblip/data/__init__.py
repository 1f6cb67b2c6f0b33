"""Data sets on disk: annotation files, frozen image features, batches."""
