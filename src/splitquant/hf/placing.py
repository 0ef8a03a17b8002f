"""Putting packed weights into a transformers model while it is being loaded, and keeping tied weights tied."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from splitquant.errors import TensorError
from splitquant.torch.carriers import attach, can_carry
from splitquant.torch.packed import PackedWeight

logger = logging.getLogger(__name__)


class Places:
    """The layers of one model and the packed weights in them.

    `home` maps every parameter name that was packed to the name under which its planes came: tied parameters share one
    home and the very same planes.
    """

    def __init__(self, model: Any, coming: Iterable[str]) -> None:
        self.model = model
        self.coming = frozenset(coming)
        self.home: dict[str, str] = {}
        self.ties = dict(model.all_tied_weights_keys)
        self.missing: set[str] = set()

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of a parameter, as the model was built."""
        dtype: torch.dtype = self.model.get_parameter_or_buffer(name).dtype
        return dtype

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter, as the model was built."""
        return tuple(self.model.get_parameter_or_buffer(name).shape)

    def can_take(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a weight can stay packed here; TensorError under tensor parallelism, which would cut its planes."""
        module, last = self._layer(name)
        parameter = module._parameters.get(last)  # noqa: SLF001
        if type(parameter).__name__ == "DTensor":
            raise TensorError(
                f"tensor {name!r} is to be divided among devices; expected a whole one: load without tp_plan"
            )
        return can_carry(module, last, shape)

    def put(self, name: str, packed: PackedWeight, missing: set[str]) -> None:
        """Put a weight in its place and in those tied to it, and take their names out of those that are missing."""
        self.missing = missing
        first = next((other for other in self._tied_to(name) if other in self.home), None)
        if first is not None:
            module, last = self._layer(first)
            placed = getattr(module, last)
            if placed.same_planes(packed):
                packed = placed
            else:
                logger.warning("%s and %s are tied by the configuration and differ in the file: not tied", first, name)
                first = None
        self._attach(name, packed, self.home[first] if first else name)
        for other in self._tied_to(name):
            if other not in self.home and other not in self.coming:  # else it has, or will get, values of its own
                self._tie(other, packed, name)
        self._untie_by_name()

    def finish(self) -> None:
        """Tie what was to come and did not, and make `tie_weights()` leave packed weights alone: they are one object."""
        for name in list(self.home):
            for other in self._tied_to(name):
                if other in self.missing and other not in self.home:
                    module, last = self._layer(name)
                    self._tie(other, getattr(module, last), self.home[name])
        for prefix, module in self.model.named_modules():
            for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
                keys = getattr(module, attribute, None)
                if not isinstance(keys, dict):
                    continue
                dot = f"{prefix}." if prefix else ""
                left = {k: v for k, v in keys.items() if dot + k not in self.home and dot + v not in self.home}
                if left != keys:
                    setattr(module, attribute, left)

    def _attach(self, name: str, packed: PackedWeight, home: str) -> None:
        module, last = self._layer(name)
        attach(module, last, packed)
        self.home[name] = home
        self.missing.discard(name)

    def _tie(self, name: str, packed: PackedWeight, home: str) -> None:
        module, last = self._layer(name)
        if can_carry(module, last, packed.packing.shape):
            self._attach(name, packed, home)
        else:
            weight = nn.Parameter(packed.dequantize(), requires_grad=False)
            weight._is_hf_initialized = True  # type: ignore[attr-defined] # noqa: SLF001 - the flag transformers asks for
            setattr(module, last, weight)
            self.missing.discard(name)

    def _tied_to(self, name: str) -> list[str]:
        source = self.ties.get(name, name)
        group = [source, *(target for target, origin in self.ties.items() if origin == source)]
        return [other for other in group if other != name] if name in group and len(group) > 1 else []

    def _untie_by_name(self) -> None:
        keys = self.model.all_tied_weights_keys
        for target, source in list(keys.items()):
            if target in self.home or source in self.home:
                del keys[target]

    def _layer(self, name: str) -> tuple[nn.Module, str]:
        parent, _, last = name.rpartition(".")
        return self.model.get_submodule(parent), last


def forget(model: nn.Module) -> None:
    """Undo `finish`: the model's class says again what is tied."""
    for module in model.modules():
        module.__dict__.pop("_tied_weights_keys", None)
        if hasattr(module, "all_tied_weights_keys"):
            module.all_tied_weights_keys = module.get_expanded_tied_weights_keys(all_submodels=True)  # type: ignore[operator]
