"""Images from wherever they come to normalised pixels."""
