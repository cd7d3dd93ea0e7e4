"""What a layer gives: a module of its own, which what captures a layer needs too."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from moe_ref.routing import Routing


class Output(NamedTuple):
    """What a layer gives.

    y: of the input's shape, 0 for padding and for tokens that found no slot; in the dtype of the experts' output,
    which under autocast is not the input's.

    routing: what the gate decided, with the losses to add to the loss of the model.
    """

    y: Tensor
    routing: Routing
