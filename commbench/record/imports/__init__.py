"""Traces that torch itself writes, read into the trace of a program: torch.profiler's, and execution traces."""
