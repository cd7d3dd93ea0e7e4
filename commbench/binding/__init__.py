"""Which CPUs and memory a rank gets."""
