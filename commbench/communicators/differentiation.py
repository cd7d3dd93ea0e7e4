"""What can be differentiated twice, and by `torch.func`: the rest is refused, as torch would leave terms out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch._C import _functorch

from commbench.errors import UsageError

TRANSFORMS = {"Grad": "grad", "Vmap": "vmap", "Jvp": "jvp", "Functionalize": "functionalize"}  # by torch's own names

ON_CPU = "layers on a CPU can be differentiated twice (docs/guide/moe.md, Twice, and torch.func)"


def differentiated_once(what: str, hint: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate the `backward` of an autograd function whose gradient cannot be differentiated.

    To try raises `UsageError`: `what` says of what it is the gradient, `hint` what can be differentiated twice.
    torch's `once_differentiable` says nothing where only what is saved has a gradient, and then leaves terms out.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def once(ctx: Any, *gradients: torch.Tensor | None) -> Any:
            with torch.no_grad():
                found = backward(ctx, *gradients)
            if not torch.is_grad_enabled():  # as it is without create_graph=True
                return found
            several = found if isinstance(found, tuple) else (found,)
            leaves = [_leaf(one) for one in several if one is not None]
            made = iter(_Refused.apply(what, hint, *leaves))  # type: ignore[no-untyped-call]
            refused = tuple(None if one is None else next(made) for one in several)
            return refused if isinstance(found, tuple) else refused[0]

        return once

    return decorate


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, what: str, hint: str, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.what, ctx.hint = what, hint
        return tuple(gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise UsageError(f"a gradient of {ctx.what} cannot be differentiated again", hint=ctx.hint)


def _leaf(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.detach().requires_grad_()


def refuse_transforms(what: str, hint: str, *, but: Collection[str] = ()) -> None:
    """Raise `UsageError` inside of a transform of `torch.func`, unless it is one of `but`: grad, vmap, jvp."""
    if torch.compiler.is_compiling():
        return
    for interpreter in _functorch.get_interpreter_stack() or ():
        name = TRANSFORMS.get(interpreter.key().name, interpreter.key().name)
        if name not in but:
            raise UsageError(f"torch.func.{name} of {what}", hint=hint)
