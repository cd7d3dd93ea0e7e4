"""Processes that cannot outlive their parent."""
