"""Rows, ratios, comparisons and stragglers from samples."""
