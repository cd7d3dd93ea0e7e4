"""Tests here make clusters of network namespaces; where that is not possible they are skipped, with the reason."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

import pytest


@functools.cache
def lacking() -> str:
    """Why there can be no cluster here, or nothing.

    Asked of other programs than ours: a defect of ours must not look like a machine that cannot.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for name, package in (("unshare", "util-linux"), ("ip", "iproute2"), ("tc", "iproute2")):
        if shutil.which(name, path=path) is None:
            return f"{name}, of {package}, is not here"
    words = ["ip", "link", "add", "name", "one", "type", "veth", "peer", "name", "two"]
    for rights in ("-n", "-Urn"):
        done = subprocess.run(["unshare", rights, *words], env={**os.environ, "PATH": path}, check=False)
        if done.returncode == 0:
            return ""
    return "this user can make no network namespaces with links in them"


@pytest.fixture(autouse=True)
def possible() -> None:
    if lacking():
        pytest.skip(lacking())
