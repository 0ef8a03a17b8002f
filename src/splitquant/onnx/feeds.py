"""Inputs for a model: given ones, or numbers made from the graph's own types and shapes; the same every time."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from splitquant.errors import SpecError

Feeds = dict[str, NDArray[Any]]
_FREE = 4  # the size of a dimension that the model leaves open and that no rule names
_MOST_NUMBERS = 1 << 28  # of all inputs together: 1 GiB of float32
_LONGEST_NUMBER = 9
_LARGEST_TOKEN = 8  # token ids stay below: every vocabulary has that many


def generated(model: ModelProto, seed: int, sizes: Mapping[str, int] | None = None) -> Feeds:
    """One set of inputs: normal floats, small integers, ones for masks; `sizes` gives the size of named dimensions.

    An open dimension of one name has one size everywhere; `batch` is 1, sums of names ("past + sequence") add up.
    A negative size, which some exporters write, is an open dimension too.
    Raises SpecError for a size of a dimension that no input has, and for inputs that are too large to be made up.
    """
    rng = np.random.default_rng(seed)
    table = dict(sizes or {})
    constants = {proto.name for proto in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in constants]
    dims = {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param}
    named = dims | {name for dim in dims for name in _terms(dim) if not _is_number(name)}
    if unknown := sorted(table.keys() - named):
        raise SpecError(f"the inputs have no open dimensions {unknown}; they have {sorted(named)}")
    shapes = {value.name: _shape(value, table) for value in values}
    if sum(map(math.prod, shapes.values())) > _MOST_NUMBERS:
        name = max(shapes, key=lambda name: math.prod(shapes[name]))
        raise SpecError(
            f"the input {name!r} has the shape {shapes[name]}, and at most {_MOST_NUMBERS} numbers are made up: give smaller "
            "sizes of open dimensions (--size NAME=N), or real inputs (--inputs FILE.npz)"
        )
    return {value.name: _made(value, rng, shapes[value.name]) for value in values}


def check_given(model: ModelProto, feeds: Mapping[str, NDArray[Any]]) -> Feeds:
    """Given inputs, with the model's element types; SpecError where one is missing, too many, or of other values."""
    wanted = {value.name: value for value in model.graph.input}
    constants = {proto.name for proto in model.graph.initializer}
    missing = [name for name in wanted if name not in feeds and name not in constants]
    unknown = [name for name in feeds if name not in wanted]
    if missing or unknown:
        raise SpecError(f"the inputs lack {missing} and have the unknown {unknown}; the model takes {sorted(wanted)}")
    return {name: _cast(name, np.asarray(array), _dtype(wanted[name])) for name, array in feeds.items()}


def _cast(name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The same numbers in another type: floats may be rounded, integers never change."""
    if array.dtype == dtype:
        return array
    text = array.dtype.kind in "OSUT"
    if text != (dtype.kind in "OSUT"):
        raise SpecError(f"the input {name!r} is {array.dtype}; the model takes {dtype}: convert it")
    if text:
        return array.astype(dtype)
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
    same = cast == array if dtype.kind in "biu" else np.isfinite(cast) == np.isfinite(array)
    if not same.all():
        raise SpecError(
            f"the input {name!r} is {array.dtype} and holds {array[~same][:1].tolist()[0]!r}, which {dtype}, the type "
            "that the model takes, does not hold: convert it"
        )
    return cast


def _shape(value: ValueInfoProto, table: dict[str, int]) -> tuple[int, ...]:
    return tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else _size(dim.dim_param, table)
        for dim in value.type.tensor_type.shape.dim
    )


def _made(value: ValueInfoProto, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    dtype = _dtype(value)
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


def _size(dim: str, table: dict[str, int]) -> int:
    if dim in table:
        return table[dim]
    names = _terms(dim)
    if len(names) > 1:
        return sum(int(name) if _is_number(name) else _size(name, table) for name in names)
    size = 1 if re.search(r"batch|^b$|^n$", dim, re.IGNORECASE) else _FREE
    table[dim] = size
    return size


def _is_number(term: str) -> bool:
    return term.isdecimal() and len(term) <= _LONGEST_NUMBER


def _terms(dim: str) -> list[str]:
    return [name.strip() for name in dim.split("+")]


def _dtype(value: ValueInfoProto) -> np.dtype[Any]:
    data_type = value.type.tensor_type.elem_type
    if data_type == TensorProto.UNDEFINED:
        raise SpecError(f"the input {value.name!r} is no tensor; give the inputs of the model by hand")
    return np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
