"""The layers whose output is linear in their weight, so that the outputs of disjoint parts add up to it."""

from __future__ import annotations

import sys

from torch import nn

_AXIS: dict[type[nn.Module], int] = {
    nn.Linear: 0,
    nn.Conv1d: 0,
    nn.Conv2d: 0,
    nn.Conv3d: 0,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 1,
    nn.ConvTranspose3d: 1,
}


def linear_kinds() -> dict[type[nn.Module], int]:
    """Every such class and the output-channel axis of its weight."""
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")  # a Conv1D cannot be there without it
    return _AXIS if pytorch_utils is None else {**_AXIS, pytorch_utils.Conv1D: 1}


def linear_kind(module: nn.Module) -> type[nn.Module] | None:
    """The class of `linear_kinds` that a module is an instance of."""
    return next((kind for kind in linear_kinds() if isinstance(module, kind)), None)


def has_forward_of_its_own(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a subclass computes something that `kind` does not, which need not be linear in the weight."""
    methods = ("forward", "_conv_forward", "__call__")
    return any(getattr(type(module), name, None) is not getattr(kind, name, None) for name in methods)


def members_of_its_own(module: nn.Module, kind: type[nn.Module]) -> list[str]:
    """Public methods and class attributes of a subclass that `kind` has not: a split layer would not have them either."""
    return sorted(name for name in dir(type(module)) if not name.startswith("_") and not hasattr(kind, name))
