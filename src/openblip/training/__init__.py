"""Objectives, recipes and the loop that trains them."""
