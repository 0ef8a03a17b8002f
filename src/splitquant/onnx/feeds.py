"""Inputs for a model: given ones, or numbers made from the graph's own types and shapes; the same every time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from splitquant.errors import SpecError
from splitquant.onnx.graph.scopes import value_of

Feeds = dict[str, NDArray[Any]]
_SIZES = (4, 16, 64, 1, 32, 128, 224, 8, 256, 320, 512, 640, 2, 3)  # tried for open dimensions, one after the other
_PIXELS = 16  # times as many where a dimension is that of an image
_MOST_NUMBERS = 1 << 28  # of all inputs together: 1 GiB of float32
_MOST_TRIED = 1 << 22  # of inputs that are larger only one size is tried
_LONGEST_NUMBER = 9
_LARGEST_TOKEN = 8  # token ids stay below where no table says how many there are
_LARGEST_BYTE = 256  # of pixels
_PASSES = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Flatten", "Slice", "Clip", "Expand")

Integers = Literal["usual", "zeros", "ones"]


@dataclass(frozen=True, slots=True)
class Way:
    """How inputs are made up: the size of open dimensions, and what integers are."""

    size: int = _SIZES[0]
    integers: Integers = "usual"


def ways(model: ModelProto, sizes: Mapping[str, int] | None = None) -> Iterator[Way]:
    """The ways to make up inputs, the usual first: a model takes one of them, or asks for real inputs."""
    values = _inputs(model)
    dims = {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim if not _is_fixed(dim)}
    tried = _SIZES if dims - (sizes or {}).keys() else _SIZES[:1]
    integers = any(value.type.tensor_type.elem_type in (TensorProto.INT32, TensorProto.INT64) for value in values)
    kinds: tuple[Integers, ...] = ("usual", "zeros", "ones") if integers else ("usual",)
    for kind in kinds:
        for size in tried:
            way = Way(size, kind)
            if size == tried[0] or _numbers(values, dict(sizes or {}), way) <= _MOST_TRIED:
                yield way


def generated(model: ModelProto, seed: int, sizes: Mapping[str, int] | None = None, way: Way | None = None) -> Feeds:
    """One set of inputs: normal floats, integers that are rows of the tables they choose from, ones for masks.

    An open dimension of one name has one size everywhere; `batch` is 1, sums of names ("past + sequence") add up.
    A negative size, which some exporters write, is an open dimension too.

    Args:
        model: whose inputs are made.
        seed: of the numbers.
        sizes: of open dimensions, by name.
        way: of all that `sizes` does not say.

    Raises:
        SpecError: for a size of a dimension that no input has, and for inputs that are too large to be made up.
    """
    way = way or Way()
    rng = np.random.default_rng(seed)
    table = dict(sizes or {})
    values = _inputs(model)
    dims = {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param}
    named = dims | {name for dim in dims for name in _terms(dim) if not _is_number(name)}
    if unknown := sorted(table.keys() - named):
        raise SpecError(f"the inputs have no open dimensions {unknown}; they have {sorted(named)}")
    shapes = {value.name: _shape(value, table, way) for value in values}
    if sum(map(math.prod, shapes.values())) > _MOST_NUMBERS:
        name = max(shapes, key=lambda name: math.prod(shapes[name]))
        raise SpecError(
            f"the input {name!r} has the shape {shapes[name]}, and at most {_MOST_NUMBERS} numbers are made up: give smaller "
            "sizes of open dimensions (--size NAME=N), or real inputs (--inputs FILE.npz)"
        )
    rows = _rows_of_tables(model.graph)
    longest = max((size for name, size in table.items() if not _is_batch(name)), default=way.size)
    return {
        value.name: _made(value, rng, shapes[value.name], _Range(rows.get(value.name), longest, way.integers))
        for value in values
    }


def check_given(model: ModelProto, feeds: Mapping[str, NDArray[Any]]) -> Feeds:
    """Given inputs, with the model's element types; SpecError where one is missing, too many, or of other values."""
    wanted = {value.name: value for value in model.graph.input}
    constants = {proto.name for proto in model.graph.initializer}
    missing = [name for name in wanted if name not in feeds and name not in constants]
    unknown = [name for name in feeds if name not in wanted]
    if missing or unknown:
        raise SpecError(f"the inputs lack {missing} and have the unknown {unknown}; the model takes {sorted(wanted)}")
    return {name: _cast(name, np.asarray(array), _dtype(wanted[name])) for name, array in feeds.items()}


def _inputs(model: ModelProto) -> list[ValueInfoProto]:
    constants = {proto.name for proto in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _numbers(values: list[ValueInfoProto], table: dict[str, int], way: Way) -> int:
    return sum(math.prod(_shape(value, table, way)) for value in values)


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


def _rows_of_tables(graph: GraphProto) -> dict[str, int]:
    """How many rows the smallest constant table has that an input chooses from, directly or behind what only reshapes."""
    shapes = {proto.name: tuple(proto.dims) for proto in graph.initializer}
    origin = {value.name: value.name for value in graph.input}
    rows: dict[str, int] = {}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            value = value_of(node)
            shapes[node.output[0]] = () if value is None else tuple(value.dims)
        elif node.op_type in _PASSES and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in shapes and node.input[1] in origin:
            axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
            shape, name = shapes[node.input[0]], origin[node.input[1]]
            if -len(shape) <= axis < len(shape):
                rows[name] = min(rows.get(name, shape[axis]), shape[axis])
        elif node.op_type in ("Identity", "Transpose", "Cast") and node.input and node.input[0] in shapes:
            order = next((list(one.ints) for one in node.attribute if one.name == "perm"), None)
            shape = shapes[node.input[0]]
            shapes[node.output[0]] = (
                shape
                if node.op_type != "Transpose"
                else tuple(shape[axis] for axis in (order or range(len(shape))[::-1]))
            )
    return rows


def _shape(value: ValueInfoProto, table: dict[str, int], way: Way) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    image = len(dims) == 4 and value.type.tensor_type.elem_type in (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.UINT8,
    )
    return tuple(
        dim.dim_value if _is_fixed(dim) else _size(dim.dim_param or ("batch" if image and at == 0 else ""), table, way)
        for at, dim in enumerate(dims)
    )


def _is_fixed(dim: Any) -> bool:
    return bool(dim.HasField("dim_value") and dim.dim_value >= 0)


@dataclass(frozen=True, slots=True)
class _Range:
    """What integers of an input may be: below `rows` where it chooses from a table; `longest` is the longest sequence."""

    rows: int | None
    longest: int
    integers: Integers


def _made(value: ValueInfoProto, rng: np.random.Generator, shape: tuple[int, ...], may: _Range) -> NDArray[Any]:
    dtype, name = _dtype(value), value.name.lower()
    if dtype == np.bool_:
        return np.ones(shape, np.bool_)
    if dtype.kind in "OSUT":
        return np.full(shape, "a")
    if np.issubdtype(dtype, np.integer):
        if may.integers != "usual":
            return np.full(shape, may.integers == "ones", dtype)
        most = _LARGEST_BYTE if dtype == np.uint8 else _LARGEST_TOKEN
        return _integers(name, rng, shape, may, most).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _integers(name: str, rng: np.random.Generator, shape: tuple[int, ...], may: _Range, most: int) -> NDArray[Any]:
    most = may.rows or most
    if "mask" in name:
        return np.ones(shape, np.int64)
    if "position" in name and shape:
        return np.broadcast_to(np.minimum(np.arange(shape[-1]), max(0, (may.rows or shape[-1]) - 1)), shape).copy()
    if re.search(r"len(gth)?s?$|_len", name):
        return np.full(shape, may.longest, np.int64)
    if not shape:
        return np.array(_scalar(name))
    if may.rows is None and re.search(r"type|segment", name):
        return np.zeros(shape, np.int64)
    return rng.integers(0, max(1, most), shape)


def _scalar(name: str) -> int:
    return 16000 if name in ("sr", "sample_rate", "sampling_rate") else 1


def _size(dim: str, table: dict[str, int], way: Way) -> int:
    if dim in table:
        return table[dim]
    names = _terms(dim)
    if len(names) > 1:
        return sum(int(name) if _is_number(name) else _size(name, table, way) for name in names)
    size = 1 if _is_batch(dim) else way.size
    if re.search(r"height|width|^h$|^w$", dim, re.IGNORECASE) and size < _PIXELS:
        size *= _PIXELS
    table[dim] = size
    return size


def _is_batch(dim: str) -> bool:
    return re.search(r"batch|^b$|^n$", dim, re.IGNORECASE) is not None


def _is_number(term: str) -> bool:
    return term.isdecimal() and len(term) <= _LONGEST_NUMBER


def _terms(dim: str) -> list[str]:
    return [name.strip() for name in dim.split("+")]


def _dtype(value: ValueInfoProto) -> np.dtype[Any]:
    data_type = value.type.tensor_type.elem_type
    if data_type == TensorProto.UNDEFINED:
        raise SpecError(f"the input {value.name!r} is no tensor; give the inputs of the model by hand")
    return np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
