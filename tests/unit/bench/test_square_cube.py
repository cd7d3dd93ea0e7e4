"""The widths from which links are hidden: by hand, and in the docs."""

from __future__ import annotations

import pytest

from tests.bench.square_cube import DEVICES, LINKS, hidden_from
from tests.conftest import REPOSITORY


def test_at_the_width_the_link_takes_as_long_as_the_products() -> None:
    width = hidden_from(1e13, 125e6, layers=3)
    assert 72 * 3 * width**2 / 1e13 == pytest.approx(width * 2 / 125e6)
    assert hidden_from(1e13, 125e6, "int8") / hidden_from(1e13, 125e6) == pytest.approx(132 / 256)


def test_the_docs_have_the_table() -> None:
    page = (REPOSITORY / "docs/guide/emulated.md").read_text()
    for device, flops in DEVICES.items():
        for link, rate in LINKS.items():
            widths = [hidden_from(flops, rate, payload) for payload in ("none", "int8")]
            assert f"| {device} | {link} | {widths[0]:.0f} | {widths[1]:.0f} |" in page
