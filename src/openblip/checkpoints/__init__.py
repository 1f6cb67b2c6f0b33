"""From a name to files to weights in a network."""
