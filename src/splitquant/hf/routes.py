"""Where each quantized tensor of a folder goes in a model.

A quantized tensor X takes the way that transformers would give to a float tensor X: the same renamings, the same converter
(which may merge it with others), the same prefix. So whatever loads as a float folder loads as a quantized one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from splitquant.format.planes import PLANE_NAMES, plane_key
from splitquant.format.weight import Weight


@dataclass(frozen=True, slots=True)
class Route:
    """The way of one quantized tensor.

    name: in the file; target: the parameter of the model that it becomes or goes into (None: the model has none);
    pattern: of the converter that it has to go through ("" for none).
    """

    name: str
    weight: Weight
    target: str | None
    pattern: str = ""


class Routes:
    """All routes of a folder, by the names of the planes in the file; and what has arrived so far."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.by_name = {route.name: route for route in routes}
        self.by_key = {
            plane_key(route.name, plane): (route, plane) for route in self.by_name.values() for plane in PLANE_NAMES
        }
        self.arrived: set[str] = set()
        self.unpacked: list[str] = []  # loaded, but as float parameters
        self.missing_keys: set[str] = set()

    def __deepcopy__(self, memo: Any) -> Routes:
        return self  # converters are copied for every parameter and share this table

    @property
    def patterns(self) -> set[str]:
        """The converters that quantized tensors go through."""
        return {route.pattern for route in self.by_name.values() if route.pattern}


def ways_of(names: Iterable[str], conversions: list[Any], model: Any) -> tuple[dict[str, tuple[str, str]], set[int]]:
    """For every tensor name of a checkpoint its parameter and its converter's pattern ("" for none).

    Also the indices of the conversions that were used. The conversions themselves are not changed: some have a memory, so
    copies see all names, in the order in which transformers will show them.
    """
    copies = copy.deepcopy(conversions)
    renamings = [c for c in copies if isinstance(c, WeightRenaming)]
    converters = [c for c in copies if isinstance(c, WeightConverter)]
    state = model.state_dict()
    prefix = model.base_model_prefix
    ways = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        ways[name] = (target, pattern or "")
    return ways, {index for index, conversion in enumerate(copies) if conversion.was_used()}


def find_routes(tensors: Mapping[str, Weight], ways: Mapping[str, tuple[str, str]], model: Any) -> Routes:
    """The routes of a folder's quantized tensors; `ways` must know all of their names."""
    state = model.state_dict()
    routes = []
    for name, weight in tensors.items():
        target, pattern = ways[name]
        routes.append(Route(name, weight, target if target in state else None, pattern))
    return Routes(routes)
