"""Files of tensors, and their way into a network."""
