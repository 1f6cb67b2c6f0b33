"""BLIP-2 in LAVIS' files, read and written."""
