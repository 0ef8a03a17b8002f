"""What `save_pretrained` writes: the planes under the names of the format, and the table that names them."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers.core_model_loading import WeightConverter, WeightRenaming

from splitquant.format.planes import plane_key
from splitquant.format.weight import Weight
from splitquant.torch.carriers import packed_weights
from splitquant.torch.packed import PackedWeight

logger = logging.getLogger(__name__)


def state_and_table(model: Any, home: dict[str, str]) -> tuple[dict[str, torch.Tensor], dict[str, Weight]]:
    """The state_dict to save (a shared weight once, under the name it came by) and the table of its packed weights.

    transformers turns the names, and merged tensors, back into those of the checkpoint afterwards. A packed weight that
    such a merge would touch is saved as floats: its planes cannot be cut or joined.
    """
    state = model.state_dict()
    names = _FileNames(model)
    table: dict[str, Weight] = {}
    floats = []
    for name, packed in packed_weights(model):
        planes = {
            key: state.pop(key) for key in list(state) if key.startswith(f"{name}.") and _plane_of(packed, name, key)
        }
        if home.get(name, name) != name:
            continue
        stored = names.of(name)
        if stored is None:
            floats.append(name)
            state[name] = packed.dequantize()
            continue
        state.update(planes)
        table[stored] = packed.packing
    if floats:
        logger.warning("saved as floats, since the checkpoint's form merges them with others: %s", ", ".join(floats))
    return state, table


def _plane_of(packed: PackedWeight, name: str, key: str) -> bool:
    return key.removeprefix(f"{name}.") in packed.planes()


class _FileNames:
    """The names that transformers will give to a model's tensors when it saves them."""

    def __init__(self, model: Any) -> None:
        conversions = [c.reverse_transform() for c in (getattr(model, "_weight_conversions", None) or [])[::-1]]
        self.renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
        self.converters = [c for c in conversions if isinstance(c, WeightConverter)]

    def of(self, name: str) -> str | None:
        """The name in the file; None where planes cannot take the way of the weight."""
        if self._is_converted(name) or self._is_converted(plane_key(name, "codes")):
            return None
        stored = self._renamed(name)
        return stored if self._renamed(plane_key(name, "codes")) == plane_key(stored, "codes") else None

    def _is_converted(self, name: str) -> bool:
        return any(converter.rename_source_key(name)[1] is not None for converter in self.converters)

    def _renamed(self, name: str) -> str:
        for renaming in self.renamings:
            name, _ = renaming.rename_source_key(name)
        return name
