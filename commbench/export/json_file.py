"""`json`: the profile itself, in its normal form; with --scope, what it says of that scope alone."""

from __future__ import annotations

import dataclasses

from commbench.export.source import Exported, ExportSource
from commbench.profile.file import dump


def write(source: ExportSource) -> Exported:
    profile = source.profile
    if source.wanted:
        scope = source.scope
        profile = dataclasses.replace(
            profile,
            scopes=[scope],
            choices=profile.of_scope(scope.id),
            refused=[item for item in profile.refused if item.scope == scope.id],
        )
    return Exported(dump(profile))
