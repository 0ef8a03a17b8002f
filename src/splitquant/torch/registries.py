"""What a module itself holds, read from its registries: attributes may be shadowed, computed or lazy."""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn.utils import parametrize

from splitquant.torch.packed import PackedWeight
from splitquant.torch.split_layer import SplitLayer

# Position tables and masks are matrices in buffers too; these are what quantizing libraries call theirs.
_LIKE_WEIGHTS = re.compile(r"weight|codes|packed|^w_|^qw", re.IGNORECASE)


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Its own parameters by name."""
    return {name: found for name, found in module._parameters.items() if found is not None}  # noqa: SLF001


def own_buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    """Its own buffers by name."""
    return {name: found for name, found in module._buffers.items() if found is not None}  # noqa: SLF001


def packed_weight(module: nn.Module) -> PackedWeight | None:
    """The packed weight in the place of its weight."""
    found = dict(module.named_children()).get("weight")
    return found if isinstance(found, PackedWeight) else None


def is_lazy(module: nn.Module) -> bool:
    """Whether its parameters or buffers get their shapes with the first batch."""
    return any(map(nn.parameter.is_lazy, [*own_parameters(module).values(), *own_buffers(module).values()]))


def is_packed_by_pytorch(module: nn.Module) -> bool:
    """Whether it is one of PyTorch's own quantized layers, which hold their weights as packed objects."""
    return type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))


def foreign_part(split: SplitLayer) -> str:
    """Which part of a split layer somebody has made something else of since ("" if none)."""
    for number, part in enumerate(split.parts):
        if "weight" not in own_parameters(part) and packed_weight(part) is None:
            return f"part {number} is a {type(part).__name__} without a weight of its own: quantized or wrapped by another library"
        bias = {**own_buffers(part), **own_parameters(part)}.get("bias")
        if number > 0 and bias is not None and not bias.is_meta and bool((bias != 0).any()):
            return f"part {number} was given a bias of its own, and the original layer has one bias; add it to that of part 0"
    return ""


def holds_weights(module: nn.Module) -> bool:
    """Whether a module itself holds weights: a parameter, a matrix in a buffer, or what it calls a weight."""
    if isinstance(module, PackedWeight):
        return False
    return (
        bool(own_parameters(module))
        or any(buffer.ndim >= 2 and _LIKE_WEIGHTS.search(name) for name, buffer in own_buffers(module).items())
        or isinstance(module, SplitLayer)
        or packed_weight(module) is not None
        or parametrize.is_parametrized(module)
        or is_packed_by_pytorch(module)
    )


def shown_weight(module: nn.Module) -> torch.Tensor | PackedWeight | None:
    """What a report names the shape and dtype of: the weight, or the largest thing there is."""
    if isinstance(module, SplitLayer):
        return None if foreign_part(module) else module.weights[0]
    if is_lazy(module):
        return None
    parameters = own_parameters(module)
    found = packed_weight(module) or parameters.get("weight")
    if found is not None:
        return found
    return max([*parameters.values(), *own_buffers(module).values()], key=lambda one: one.numel(), default=None)


def held_bytes(module: nn.Module) -> int:
    """What that takes: the weight, the planes of a packed one, those of all parts."""
    if isinstance(module, SplitLayer):
        return 0 if foreign_part(module) else sum(held_bytes(part) for part in module.parts)
    packed = packed_weight(module)
    if packed is not None:
        return packed.packing.nbytes
    shown = shown_weight(module)
    return 0 if shown is None else shown.numel() * shown.dtype.itemsize


def held_key(module: nn.Module) -> tuple[int, ...]:
    """What modules agree in that share their weight: the identity of it, or of all parts (() where there is none)."""
    if isinstance(module, SplitLayer):
        return () if foreign_part(module) else tuple(map(id, module.weights))
    held = packed_weight(module)
    weight = own_parameters(module).get("weight") if held is None else held
    return () if weight is None else (id(weight),)
