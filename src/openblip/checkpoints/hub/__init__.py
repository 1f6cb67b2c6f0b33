"""Model files of the Hugging Face hub and of the web."""
