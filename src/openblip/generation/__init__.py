"""Text generation: knows ids and embeddings, neither words nor images."""
