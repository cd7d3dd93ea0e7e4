"""GPU kernels of commbench, compiled when they are first used. Nothing here imports commbench.

Each stands beside a plain-torch reference of what it does, and its roofline: the least time that the hardware allows.
"""
