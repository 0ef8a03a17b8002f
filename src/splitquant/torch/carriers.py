"""Which layers can carry a PackedWeight, and how it gets into them and out again."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import nn

from splitquant.torch.packed import PackedWeight

_LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    nn.Embedding,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def can_carry(module: nn.Module, name: str, shape: tuple[int, ...]) -> bool:
    """Whether parameter `name` of a module is the weight of a layer that reads it by PyTorch's operations alone."""
    pytorch_utils = sys.modules.get("transformers.pytorch_utils")  # a Conv1D cannot be there without it
    layers = _LAYERS if pytorch_utils is None else (*_LAYERS, pytorch_utils.Conv1D)
    parameter = module._parameters.get(name)  # noqa: SLF001 - the registry itself, since names may be shadowed
    return name == "weight" and isinstance(module, layers) and parameter is not None and tuple(parameter.shape) == shape


def attach(module: nn.Module, name: str, packed: PackedWeight) -> None:
    """Put a packed weight in the place of a parameter, or of another packed weight."""
    delattr(module, name)  # a module cannot be assigned over a parameter
    setattr(module, name, packed)


def detach(module: nn.Module, name: str, weight: nn.Parameter) -> None:
    """Put a parameter in the place of a packed weight."""
    delattr(module, name)
    module.register_parameter(name, weight)


def packed_weights(model: nn.Module) -> Iterator[tuple[str, PackedWeight]]:
    """All packed weights by their full names; a shared one comes once for each of its names."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, PackedWeight):
            yield name, module


def unpack_all(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replace every packed weight by the parameter it stands for, in `dtype` (None: its own); shared ones stay shared."""
    made: dict[int, nn.Parameter] = {}
    for full_name, packed in list(packed_weights(model)):
        parent, _, name = full_name.rpartition(".")
        if id(packed) not in made:
            made[id(packed)] = nn.Parameter(packed.dequantize(dtype), requires_grad=False)
        detach(model.get_submodule(parent), name, made[id(packed)])
