"""Features of a frozen image encoder, computed before the first step."""
