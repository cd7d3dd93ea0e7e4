"""The profile that a process's groups go by: which one it is, and the same on all ranks."""

from __future__ import annotations

import hashlib
from pathlib import Path

from commbench.communicators.loaded import LoadedProfile, load
from commbench.errors import CommbenchError
from commbench.profile import file


class ProfileSource:
    """A profile's file, read once. What is wrong with it is said when it is used, on all ranks that use it."""

    def __init__(self, path: str | Path, *, reductions: bool = False) -> None:
        """`reductions`: sums go by the profile too, which add in another order."""
        self.name, self.reductions = str(path), reductions
        self._loaded: LoadedProfile | None = None
        self.error: CommbenchError | None = None
        try:
            self._loaded = load(path)
        except CommbenchError as error:
            self.error = error

    def loaded(self) -> LoadedProfile:
        """Return the profile. Raises `CommbenchError` where it cannot be read."""
        if self._loaded is None:
            assert self.error is not None
            raise self.error
        return self._loaded

    def digest(self) -> str:
        """Return what tells this profile from others. Raises as `loaded` does."""
        return hashlib.sha256(file.dump(self.loaded().profile).encode()).hexdigest()[:12]
