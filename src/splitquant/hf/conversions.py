"""Conversions for transformers' loading loop that know quantized tensors.

The loop renames the keys of a checkpoint, gathers what belongs to one parameter in a copy of a converter, and lets it make
the parameter. `PlainRenaming` keeps plane names out of the other renamings; `PlaneConverter` gathers the planes of a
quantized tensor as if they were the float tensor; `DirectConverter` does so where no other converter is concerned.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from transformers.core_model_loading import Concatenate, WeightConverter, WeightRenaming

from splitquant.errors import TensorError
from splitquant.format.planes import plane_key
from splitquant.format.weight import Weight
from splitquant.hf.placing import Places
from splitquant.hf.routes import Route, Routes
from splitquant.torch.decode import decode
from splitquant.torch.packed import PackedWeight
from splitquant.torch.packing import check_planes

_NEVER = r"(?!)"  # matches no name: these conversions look names up in the routes
DIRECT = "splitquant planes " + _NEVER
Pending = Any
"""A tensor that is being read: a Future, a function that reads it, or the tensor."""


@dataclass
class _Gathering:
    """The planes of one quantized tensor, as they come."""

    route: Route
    planes: dict[str, Pending] = field(default_factory=dict)

    def read(self) -> tuple[Weight, dict[str, torch.Tensor]]:
        """Wait for the planes and check them; TensorError names the one that is missing or does not fit."""
        weight, planes = self.route.weight, {name: _read(pending) for name, pending in self.planes.items()}
        if "shape" not in planes:
            raise TensorError(
                f"tensor {plane_key(self.route.name, 'shape')!r} is missing; the folder is incomplete: copy it again"
            )
        shape = tuple(planes["shape"].tolist())
        if weight.axis >= len(shape):
            raise TensorError(
                f"tensor {self.route.name!r} has shape {list(shape)} and, in config.json, axis {weight.axis}; "
                "quantize the model again"
            )
        weight = replace(weight, shape=shape)
        check_planes(self.route.name, weight, planes)
        return weight, planes


def _read(pending: Pending) -> torch.Tensor:
    tensor: torch.Tensor
    if isinstance(pending, Future):
        tensor = pending.result()
    elif callable(pending) and not isinstance(pending, torch.Tensor):
        tensor = pending()
    else:
        tensor = pending
    return tensor


class PlainRenaming(WeightRenaming):  # type: ignore[misc] # transformers is not typed
    """The renamings of a model in turn, for all names but those of planes."""

    def __init__(self, renamings: list[Any], routes: Routes) -> None:
        super().__init__(source_patterns="splitquant names " + _NEVER, target_patterns="splitquant")
        self.renamings = renamings
        self.routes = routes

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        hit = self.routes.by_key.get(source_key)
        if hit is not None:
            # A tensor that the model has no place for is reported by its own name, not plane by plane.
            return (source_key if hit[0].target is not None else hit[0].name), None
        for renaming in self.renamings:
            source_key, _ = renaming.rename_source_key(source_key)
        return source_key, None


class PlaneConverter(WeightConverter):  # type: ignore[misc]
    """A converter of the model to which quantized tensors come dequantized, in the places where float ones would come."""

    def __init__(self, inner: Any, routes: Routes) -> None:
        super().__init__(
            list(inner._original_source_patterns),  # noqa: SLF001 - as transformers copies its own converters
            list(inner._original_target_patterns),  # noqa: SLF001
            operations=list(inner.operations),
        )
        for name in ("scope_prefix", "base_model_prefix", "force_cpu"):
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))
        self.routes = routes
        self.dtype: torch.dtype | None = None
        self.gatherings: dict[str, _Gathering] = {}

    @property
    def concerned(self) -> bool:
        """Whether any quantized tensor comes here."""
        return not self.routes.patterns.isdisjoint(self.source_patterns)

    def rename_source_key(self, source_key: str) -> tuple[str, str | None]:
        hit = self.routes.by_key.get(source_key)
        if hit is None:
            renamed: tuple[str, str | None] = super().rename_source_key(source_key)
            return renamed
        route = hit[0]
        if route.target is None or self._pattern_of(route) not in self.source_patterns:
            return source_key, None
        return route.target, self._pattern_of(route)

    def _pattern_of(self, route: Route) -> str:
        return route.pattern

    def add_tensor(self, target_key: str, source_key: str, source_pattern: str, future: Pending) -> None:
        hit = self.routes.by_key.get(source_key)
        if hit is None:
            super().add_tensor(target_key, source_key, source_pattern, future)
            return
        route, plane = hit
        if route.name not in self.gatherings:
            self.gatherings[route.name] = _Gathering(route)
            super().add_tensor(target_key, source_key, source_pattern, cast("Any", self.gatherings[route.name]))
        self.gatherings[route.name].planes[plane] = future

    def materialize_tensors(self) -> dict[str, list[torch.Tensor]]:
        if not self.gatherings:
            whole: dict[str, list[torch.Tensor]] = super().materialize_tensors()
            return whole
        collected = {}
        for pattern in list(self.collected_tensors):
            items = self.collected_tensors.pop(pattern)
            collected[pattern] = [
                self._dequantized(item) if isinstance(item, _Gathering) else _in_dtype(_read(item), self.dtype)
                for item in items
            ]
        self.gatherings = {}
        return collected

    def _dequantized(self, gathering: _Gathering) -> torch.Tensor:
        weight, planes = gathering.read()
        self.routes.arrived.add(gathering.route.name)
        self.routes.unpacked.append(gathering.route.name)
        return decode(planes, weight, self.dtype)

    def convert(
        self,
        layer_name: str,
        model: Any = None,
        config: Any = None,
        hf_quantizer: Any = None,
        loading_info: Any = None,
    ) -> Any:
        """Make the parameter of what was gathered."""
        if self.dtype is None and self.gatherings:
            self.dtype = model.get_parameter_or_buffer(layer_name).dtype
        return super().convert(layer_name, model, config, hf_quantizer, loading_info)


class DirectConverter(PlaneConverter):
    """Takes the quantized tensors that need no other converter: packed where the model's layer can carry that."""

    def __init__(self, routes: Routes, places: Callable[[], Places]) -> None:
        super().__init__(WeightConverter(DIRECT, "splitquant", operations=[Concatenate(dim=0)]), routes)
        self.places = places

    def __deepcopy__(self, memo: Any) -> DirectConverter:
        return DirectConverter(self.routes, self.places)

    @property
    def concerned(self) -> bool:
        return True

    def _pattern_of(self, route: Route) -> str:
        return DIRECT if not route.pattern else route.pattern

    def convert(
        self,
        layer_name: str,
        model: Any = None,
        config: Any = None,
        hf_quantizer: Any = None,
        loading_info: Any = None,
    ) -> dict[str, torch.Tensor]:
        """Put the planes into their layer and return nothing, or return the dequantized parameter."""
        del model, config, hf_quantizer
        (gathering,) = self.gatherings.values()
        weight, planes = gathering.read()
        name = gathering.route.name
        places = self.places()
        self.routes.arrived.add(name)
        self.routes.missing_keys = loading_info.missing_keys
        dtype = self.dtype or places.dtype_of(layer_name)
        if not weight.stack and places.can_take(layer_name, weight.shape):
            planes.pop("shape")
            places.put(layer_name, PackedWeight(planes, weight, dtype), loading_info.missing_keys)
            return {}
        expected = places.shape_of(layer_name)
        if weight.shape != expected:
            loading_info.missing_keys.discard(layer_name)
            loading_info.mismatched_keys.add((layer_name, torch.Size(weight.shape), torch.Size(expected)))
            return {}
        self.routes.unpacked.append(name)
        return {layer_name: decode(planes, weight, dtype)}


def _in_dtype(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def with_routes(conversions: list[Any], routes: Routes, places: Callable[[], Places]) -> list[Any]:
    """The conversions of a model, made to know the routes."""
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    return [
        PlainRenaming(renamings, routes),
        DirectConverter(routes, places),
        *(PlaneConverter(converter, routes) for converter in converters),
    ]
