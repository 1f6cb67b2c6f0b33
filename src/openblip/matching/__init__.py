"""Images and texts compared: scored pair by pair, and ranked for search."""
