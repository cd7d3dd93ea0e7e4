"""What CUDA graphs need around them: a capture, and a watch for what makes the host wait."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch

_WAITS = "called a synchronizing CUDA operation"  # of torch's sync debug mode


class Uncapturable(Exception):
    """What should be captured cannot be, and why."""


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Raise `Uncapturable` where the host waits for the GPU inside."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if _WAITS not in str(error):
            raise
        raise Uncapturable("the host waits for the GPU in the pass, which a graph cannot") from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def capture(graph: torch.cuda.CUDAGraph, after: torch.cuda.CUDAGraph | None = None) -> Iterator[None]:
    """Capture what is done inside. after: a graph that is always replayed before, whose memory this one may take up."""
    pool = None if after is None else after.pool()
    # Other threads may do to the GPU what they like: loaders of data, watchdogs.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        yield
