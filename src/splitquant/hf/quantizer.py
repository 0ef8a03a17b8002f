"""The HfQuantizer: loads quantized folders, quantizes float models on load, saves, dequantizes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.quantizers.base import HfQuantizer

from splitquant.errors import SourceError, TensorError
from splitquant.format.planes import PLANE_NAMES, plane_key
from splitquant.hf.config import SplitQuantConfig
from splitquant.hf.conversions import PlaneConverter, with_routes
from splitquant.hf.onload import QuantizeOnLoad, choose
from splitquant.hf.placing import Places, forget
from splitquant.hf.routes import Route, Routes, find_routes, ways_of
from splitquant.hf.saving import state_and_table
from splitquant.hf.sources import headers_of
from splitquant.plan.plan import Decision
from splitquant.torch.carriers import unpack_all

logger = logging.getLogger(__name__)

if not hasattr(HfQuantizer, "update_weight_conversions"):
    raise ImportError("transformers 5.10 or newer is needed")  # registering fails, and says so where it is used


class SplitQuantizer(HfQuantizer):  # type: ignore[misc] # transformers is not typed
    """One per loaded model. transformers calls the methods below in the order in which they stand."""

    requires_calibration = False
    quantization_config: SplitQuantConfig

    def __init__(self, quantization_config: SplitQuantConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.model: Any = None
        self.files: list[Any] | None = None
        self.places: Places | None = None
        self.routes: Routes | None = None
        self.conversions: list[Any] = []
        self.used: set[int] = set()
        self.renamed: dict[str, torch.dtype] = {}
        self.chosen: dict[str, Decision] = {}
        self.failures: dict[str, TensorError] = {}

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        self.model = model
        self.files = kwargs.get("checkpoint_files")
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any = None) -> list[Any]:
        """Decide for every tensor of the checkpoint; only here all renamings are known, also those of the user."""
        model = self.model if model is None else model
        if self.places is not None or model is None or model is not self.model:
            return weight_conversions  # an adapter is being loaded into a finished model
        headers = headers_of(self.files, model)
        tensors = self.quantization_config.tensors if self.pre_quantized else {}
        names = {header.name for header in headers} - {
            plane_key(name, plane) for name in tensors for plane in PLANE_NAMES
        }
        ways, self.used = ways_of(names | set(tensors), weight_conversions, model)
        self.conversions = weight_conversions
        self.renamed = {
            target: dtype
            for name, (target, _) in ways.items()
            if name != target and name not in tensors and (dtype := _dtype_of(model, target)) is not None
        }
        self.places = Places(model, (target for target, _ in ways.values()))
        if not self.pre_quantized:
            self.chosen = choose(headers, ways, self.quantization_config, self.places)
            return weight_conversions
        self.routes = find_routes(tensors, ways, model)
        return with_routes(weight_conversions, self.routes, self._places)

    def param_element_size(self, model: Any, param_name: str, param: torch.Tensor) -> float:
        """Bytes per weight, for planning where layers go."""
        plan = self.chosen.get(param_name)
        if plan is not None:
            return plan.stored_bytes / max(1, plan.layer.weights)
        size: float = super().param_element_size(model, param_name, param)
        return size

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        del model, kwargs
        return param_name in self.chosen

    def get_quantize_ops(self) -> QuantizeOnLoad:
        return QuantizeOnLoad(self.chosen, self._places(), self.failures)

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Planes are never cast; their converter is told the dtype that the parameter is to have."""
        if isinstance(converter, PlaneConverter) and converter.concerned:
            converter.dtype = dtype if dtype is not None else converter.dtype
            return None
        new_dtype: torch.dtype | None = super().get_new_dtype(converter, param, dtype)
        return new_dtype

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        del kwargs
        if self.failures:
            name, error = next(iter(self.failures.items()))
            raise TensorError(f"tensor {name!r} {error}") from error
        if self.routes is not None:
            self._check_arrivals(model, self.routes)
            self._cast_renamed(model)
        self._places().finish()
        # The conversions as they were before they knew the routes: saving turns them back.
        model._weight_conversions = [  # noqa: SLF001
            c for index, c in enumerate(self.conversions) if index in self.used or c.was_used()
        ]
        if not self.pre_quantized:
            self.quantization_config.tensors = state_and_table(model, self._places().home)[1]
        self.model = None  # a model must not hold itself through its quantizer
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        state, self.quantization_config.tensors = state_and_table(model, self._places().home)
        model.config.quantization_config = self.quantization_config
        for nested in _nested(model.config):  # by which a tower of the folder is loaded
            nested.quantization_config = self.quantization_config.to_dict()
        return state, {}

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        # A composite configuration holds its dtype by name.
        unpack_all(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        for nested in _nested(model.config):
            nested.__dict__.pop("quantization_config", None)
        forget(model)
        return model

    def is_serializable(self, **_: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    def _places(self) -> Places:
        assert self.places is not None, "update_weight_conversions comes first"
        return self.places

    def _cast_renamed(self, model: Any) -> None:
        """Do what transformers before `get_new_dtype` leaves out: cast kept tensors whose names it changed."""
        if hasattr(HfQuantizer, "get_new_dtype"):
            return
        exempt = [
            *(getattr(model, "_keep_in_fp32_modules", None) or ()),
            *(getattr(model, "_keep_in_fp32_modules_strict", None) or ()),
        ]
        for name, dtype in self.renamed.items():
            parameter = model.get_parameter_or_buffer(name)
            if parameter.is_floating_point() and not any(part in name for part in exempt):
                parameter.data = parameter.data.to(dtype)

    def _check_arrivals(self, model: Any, routes: Routes) -> None:
        """Nothing that the folder announces may be left out in silence; SourceError names the tensor."""
        for route in routes.by_name.values():
            if route.target is not None and route.name not in routes.arrived:
                raise SourceError(
                    f"tensor {plane_key(route.name, 'codes')!r} is missing and config.json announces it; the folder is incomplete: copy it again"
                )
        lost = [route for route in routes.by_name.values() if route.target is None and not _ignored(model, route.name)]
        if len(lost) == len(routes.by_name) > 0:
            raise SourceError(_no_place(lost[0], model, "nothing quantized in it has one"))
        missing = routes.missing_keys
        for route in lost:  # the same layer under another prefix: nothing that a new head could explain
            twin = next((key for key in sorted(missing) if _same_layer(route.name, key)), None)
            if twin is not None:
                raise SourceError(_no_place(route, model, f"the model's {twin!r} got no values"))
        if lost and missing and type(model).__name__ in (model.config.architectures or ()):
            raise SourceError(_no_place(lost[0], model, f"the model's {min(missing)!r} got no values"))
        if routes.unpacked:
            logger.info(
                "loaded as floats, since their layers cannot carry packed weights: %s", ", ".join(routes.unpacked)
            )


def _nested(config: Any) -> Iterator[Any]:
    """The configurations of the towers of a composite model, and of theirs."""
    for key in type(config).sub_configs:
        nested = getattr(config, key, None)
        if isinstance(nested, PretrainedConfig):
            yield nested
            yield from _nested(nested)


def _dtype_of(model: Any, name: str) -> torch.dtype | None:
    try:
        dtype: torch.dtype = model.get_parameter_or_buffer(name).dtype
    except AttributeError:
        return None  # the model has no such parameter
    return dtype


def _ignored(model: Any, name: str) -> bool:
    """Whether the model's class says that it does without this tensor."""
    patterns = model._keys_to_ignore_on_load_unexpected or ()  # noqa: SLF001 - transformers' own registry
    return any(re.search(pattern, name) for pattern in patterns)


def _same_layer(name: str, other: str) -> bool:
    """Whether two names end alike from the number of a layer on, or one is the other below a prefix."""
    a, b = name.split(".")[::-1], other.split(".")[::-1]
    alike = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return alike == min(len(a), len(b)) > 1 or any(part.isdecimal() for part in a[:alike])


def _no_place(route: Route, model: Any, why: str) -> str:
    return (
        f"tensor {route.name!r} of the folder has no place in {type(model).__name__}, and {why}; "
        "load it with the class that config.json names, and with the transformers version it was made for"
    )
