"""What docs/guide/end-to-end.md says to type."""

from __future__ import annotations

import re

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs/guide/end-to-end.md"


def typed() -> list[str]:
    """Block by block."""
    return re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
