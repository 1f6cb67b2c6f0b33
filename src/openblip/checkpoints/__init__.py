"""From a name to files to weights in a network."""

DEFAULT_MODEL = "mini"
"""What is loaded where nobody names a model. `openblip --help` shows it, without reading the registry."""
