"""Readers of tables, folders, tars and annotation files."""
