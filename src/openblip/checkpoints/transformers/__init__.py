"""BLIP-2 folders of transformers, read and written."""
