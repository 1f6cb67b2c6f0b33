"""Images from wherever they come to normalized pixels."""
