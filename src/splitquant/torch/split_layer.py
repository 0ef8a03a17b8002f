"""`SplitLayer`: k parallel layers of the original type whose outputs are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from splitquant.torch.activations import DynamicInt8
from splitquant.torch.carriers import attach
from splitquant.torch.kinds import linear_kind
from splitquant.torch.packed import PackedWeight
from splitquant.torch.parts import join

_OWN = frozenset(nn.Module().__dict__)
_HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


class SplitLayer(nn.Module):
    """A layer as the sum of k layers of its type: `y = parts[0](x) + ... + parts[k-1](x)`, the bias in part 0 alone.

    parts: the layers; their weights have the shape of the original one. The layer's public constants (`in_features`,
    `stride`, ...) are here too, and `weight` and `bias` can be read as before: code outside that does so stays right.
    activations: the grid on which the input is put, once for all parts (packed ones only; None: no grid).
    """

    def __init__(self, layer: nn.Module, parts: Sequence[nn.Module], activations: DynamicInt8 | None = None) -> None:
        super().__init__()
        self.__dict__.update({k: v for k, v in _constants(layer).items() if not k.startswith("_")})
        self.parts = nn.ModuleList(parts)
        self.activations = activations
        self.training = layer.training
        _move_hooks(layer, self)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The sum of the parts' outputs; arguments as those of the original layer."""
        if self.activations is None:
            return self._sum(*args, **kwargs)
        if args:
            x, *rest = args
        else:
            x, rest = kwargs.pop(next(name for name in ("input", "x") if name in kwargs)), []
        return self._sum(self.activations(x, len(self.weights[0].shape)), *rest, **kwargs).to(x.dtype)

    def _sum(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        first, *others = self.parts
        out: torch.Tensor = first(*args, **kwargs)
        for part in others:
            out = out + part(*args, **kwargs)
        return out

    @property
    def weights(self) -> list[nn.Parameter | PackedWeight]:
        """The weight of each part."""
        return [part.weight for part in self.parts]  # type: ignore[misc]

    @property
    def weight(self) -> torch.Tensor:
        """The sum of the parts' weights, computed anew: writing into it changes nothing here."""
        return join(self.weights)

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias, which part 0 holds."""
        bias: torch.Tensor | None = self.parts[0].bias  # type: ignore[assignment]
        return bias

    def extra_repr(self) -> str:
        return f"the sum of {len(self.parts)} parts" + (f", activations {self.activations}" if self.activations else "")


def sister(layer: nn.Module, weight: nn.Parameter | PackedWeight, part: int) -> nn.Module:
    """A layer of the same class and constants with another weight, without hooks; part 0 alone takes the bias."""
    new = type(layer).__new__(type(layer))
    nn.Module.__init__(new)
    new.__dict__.update(_constants(layer))
    new.training = layer.training
    parameters = layer._parameters  # noqa: SLF001 - the registry itself, since names may be shadowed
    bias = parameters.get("bias")
    new.register_parameter("weight", weight if isinstance(weight, nn.Parameter) else None)
    if isinstance(weight, PackedWeight):
        attach(new, "weight", weight)
    if part > 0 and bias is not None and needs_bias(layer):
        new.register_buffer("bias", torch.zeros_like(bias, requires_grad=False))
    else:
        new.register_parameter("bias", bias if part == 0 else None)
    return new


def whole(split: SplitLayer, weight: nn.Parameter) -> nn.Module:
    """The original layer with a weight: the inverse of splitting it."""
    layer = sister(split.parts[0], weight, 0)
    layer.training = split.training
    _move_hooks(split, layer)
    return layer


def needs_bias(layer: nn.Module) -> bool:
    """Whether a layer's forward cannot do without a bias (transformers' Conv1D)."""
    kind = linear_kind(layer)
    return kind is not None and kind.__name__ == "Conv1D"


def _constants(layer: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in layer.__dict__.items() if name not in _OWN}


def _move_hooks(source: nn.Module, target: nn.Module) -> None:
    """Hooks see the layer's input and its whole output once, so they belong to the layer and not to its parts.

    The very dictionaries move: a handle that was given out for a hook still removes it.
    """
    for name in _HOOKS:
        target.__dict__[name] = source.__dict__[name]
