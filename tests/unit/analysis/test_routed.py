"""Columns of dispatch and combine, on a routing that can be counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from commbench import algorithms
from commbench.analysis import routed
from commbench.collectives import routing_trace
from tests.unit.algorithms.test_routed import spec_of


def test_rows_and_bandwidths_by_hand(tmp_path: Path) -> None:
    """2 nodes of 2 ranks, an expert each; two tokens of a rank, of 48 bytes, for experts 0, 1 and 2."""
    experts = np.tile(np.array([0, 1, 2], np.int32), (1, 4, 2, 1))
    experts[0, 3, 1] = -1  # and one masked: 7 tokens are for somebody
    np.savez(tmp_path / "trace.npz", experts=experts)
    trace = routing_trace.read(str(tmp_path / "trace.npz"))
    spec = spec_of("dispatch", "per_choice", 2, 2, router="trace", trace=trace, experts=4, counts="cached")
    rows = routed.rows(spec)
    assert (rows["rows_choice"], rows["rows_rank"], rows["rows_node"]) == (21 / 8, 21 / 8, 14 / 8)
    assert rows["skew"] == pytest.approx(7 / (21 / 4))
    rates = routed.rates(spec, algorithms.get("dispatch", "per_choice").steps(spec), time_us=0.048)
    assert rates["tokens_per_s"] == pytest.approx(8 / 48e-9)
    # 48 bytes in 48 ns are a GB/s: rank 0 gets 7 rows; a sender has 2 tokens for 2 nodes.
    assert rates["logical_rank_gbps"] == pytest.approx(7) and rates["logical_node_gbps"] == pytest.approx(4)
    # Into node 0 come 3 tokens of node 1 for two experts each; to rank 0 come 2 of rank 1.
    assert rates["wire_inter_gbps"] == pytest.approx(6) and rates["wire_intra_gbps"] == pytest.approx(2)
    assert "wire_inter_gbps" not in routed.rates(spec, None, 1.0)
