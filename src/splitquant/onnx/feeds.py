"""Inputs for a model: given ones, or numbers made from the graph's own types and shapes; the same every time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from splitquant.errors import SpecError

Feeds = dict[str, NDArray[Any]]
_FREE = 4  # the size of a dimension that the model leaves open and that no rule names
_LARGEST_TOKEN = 8  # token ids stay below: every vocabulary has that many


def generated(model: ModelProto, seed: int, sizes: Mapping[str, int] | None = None) -> Feeds:
    """One set of inputs: normal floats, small integers, ones for masks; `sizes` gives the size of named dimensions.

    An open dimension of one name has one size everywhere; `batch` is 1, sums of names ("past + sequence") add up.
    """
    rng = np.random.default_rng(seed)
    table = dict(sizes or {})
    constants = {proto.name for proto in model.graph.initializer}
    return {value.name: _made(value, rng, table) for value in model.graph.input if value.name not in constants}


def check_given(model: ModelProto, feeds: Mapping[str, NDArray[Any]]) -> Feeds:
    """Given inputs, with the model's element types; SpecError where one is missing or too many."""
    wanted = {value.name: value for value in model.graph.input}
    constants = {proto.name for proto in model.graph.initializer}
    missing = [name for name in wanted if name not in feeds and name not in constants]
    unknown = [name for name in feeds if name not in wanted]
    if missing or unknown:
        raise SpecError(f"the inputs lack {missing} and have the unknown {unknown}; the model takes {sorted(wanted)}")
    return {name: np.asarray(array, _dtype(wanted[name])) for name, array in feeds.items()}


def _made(value: ValueInfoProto, rng: np.random.Generator, table: dict[str, int]) -> NDArray[Any]:
    dtype = _dtype(value)
    shape = [
        _size(dim.dim_value if dim.HasField("dim_value") else dim.dim_param, table)
        for dim in value.type.tensor_type.shape.dim
    ]
    if dtype == np.bool_:
        return np.ones(shape, np.bool_)
    if np.issubdtype(dtype, np.integer):
        if "mask" in value.name:
            return np.ones(shape, dtype)
        if "position" in value.name and shape:
            return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
        if not shape:
            return np.array(_scalar(value.name), dtype)
        return rng.integers(0, _LARGEST_TOKEN, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _scalar(name: str) -> int:
    return 16000 if name in ("sr", "sample_rate", "sampling_rate") else 1


def _size(dim: int | str, table: dict[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim in table:
        return table[dim]
    names = [name.strip() for name in dim.split("+")]
    if len(names) > 1:
        return sum(int(name) if name.isdecimal() else _size(name, table) for name in names)
    size = 1 if re.search(r"batch|^b$|^n$", dim, re.IGNORECASE) else _FREE
    table[dim] = size
    return size


def _dtype(value: ValueInfoProto) -> np.dtype[Any]:
    data_type = value.type.tensor_type.elem_type
    if data_type == TensorProto.UNDEFINED:
        raise SpecError(f"the input {value.name!r} is no tensor; give the inputs of the model by hand")
    return np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
