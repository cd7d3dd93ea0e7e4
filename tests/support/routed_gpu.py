"""The kernels of routed.cu on one GPU, for the ranks of `routed_ranks`, which share it."""

from __future__ import annotations

import numpy as np
import torch
from commbench_kernels import routed

from tests.support.routed_ranks import SPOILT, RoutedRanks


class OnGpu:
    """The buffers of ranks on one GPU, and their calls beside each other, each on a stream of its own."""

    def __init__(self) -> None:
        self.kept: dict[int, torch.Tensor] = {}
        self.streams = [torch.cuda.Stream() for _ in range(8)]

    def place(self, array: np.ndarray) -> int:
        tensor = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()).cuda()
        self.kept[tensor.data_ptr()] = tensor
        return tensor.data_ptr()

    def wrong(self, ranks: RoutedRanks, calls: int) -> int:
        """Wrong bytes of so many calls, of different routings by turns."""
        launches = [
            [routed.launch(0, ranks.kernel, call, blocks=ranks.blocks, ranks=ranks.ranks) for call in of_ranks]
            for of_ranks in ranks.calls
        ]
        right = [[torch.from_numpy(one).cuda() for one in of_ranks] for of_ranks in ranks.expected]
        outs = [self.kept[at] for at in ranks.outs]
        torch.cuda.synchronize()
        total = torch.zeros(ranks.ranks, dtype=torch.int64, device="cuda")
        # What has to be loaded is loaded now: CUDA would wait for ranks that wait for each other.
        total += sum(int((out != out).sum()) for out in outs)
        for number in range(calls):
            turn = number % len(launches)
            for launch, stream in zip(launches[turn], self.streams, strict=False):
                launch(stream.cuda_stream)
            for rank, (out, expected) in enumerate(zip(outs, right[turn], strict=True)):
                with torch.cuda.stream(self.streams[rank]):
                    total[rank] += (out[: len(expected)] != expected).sum()
                    out.fill_(SPOILT)
        torch.cuda.synchronize()
        return int(total.sum())
