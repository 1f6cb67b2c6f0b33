"""A model behind HTTP: one thread owns it, and takes what waits as one batch. See docs/serve.md."""
