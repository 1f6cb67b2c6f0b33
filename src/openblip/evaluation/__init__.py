"""Scores of captions, answers and retrieval."""
