"""The programs that make an emulated network, and the Debian packages that have them."""

from __future__ import annotations

import os
import shutil

from commbench.errors import EnvironmentProblem

_PACKAGES = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables"}


def find(name: str) -> str:
    """Return the program's path; it is often outside the PATH of ordinary users. Raises `EnvironmentProblem`."""
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if path is None:
        raise EnvironmentProblem(
            f"fabric=emulated needs the program {name}, which is not here",
            hint=f"install it, e.g. apt install {_PACKAGES[name]}",
        )
    return path
