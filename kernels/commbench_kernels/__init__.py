"""GPU kernels of commbench, compiled when they are first used. Each stands beside a plain-torch reference of what it does
and its roofline: the least time that the hardware allows. Nothing here imports commbench.
"""
