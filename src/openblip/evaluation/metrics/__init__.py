"""Scores of captions, answers, labels and rankings."""
