"""Rows as tables, files and lines."""
