"""What a wheel has beside its sources: Vega, which draws the charts of `commbench report`, as one script.

It is taken from vl-convert-python (BSD-3-Clause), a package of PyPI that has Vega, Vega-Lite and Vega-Embed in it
(BSD-3-Clause as well), so that neither this repository nor a page fetches it from anywhere else.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = "vl-convert-python==1.9.0.post1"
TARGET = "commbench/report/assets/vega.js"
_HEAD = "/*! Vega {vega}, Vega-Lite, Vega-Embed: https://vega.github.io, BSD-3-Clause. By {source}. */\n"


class VegaHook(BuildHookInterface):  # type: ignore[type-arg]
    """Writes the script beside the package's other assets, once."""

    def dependencies(self) -> list[str]:
        return [] if self._is_made() else [SOURCE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        target = Path(self.root, TARGET)
        if not self._is_made():
            import vl_convert

            assert importlib.metadata.version("vl-convert-python") == SOURCE.rpartition("=")[2]
            text = _HEAD.format(vega=vl_convert.get_vega_version(), source=SOURCE) + vl_convert.javascript_bundle()
            if "</script" in text.lower() or "<!--" in text:
                raise ValueError(f"what {SOURCE} bundles cannot stand in a page")
            target.write_text(text, encoding="utf-8")
        build_data["artifacts"].append(TARGET)

    def _is_made(self) -> bool:
        target = Path(self.root, TARGET)
        return target.is_file() and f"By {SOURCE}." in target.read_text(encoding="utf-8")[:300]
