"""Tensors of a model as they are stored: inline or in a file, read by pieces, checked before anybody reads them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from splitquant.core.arrays import U8
from splitquant.errors import SourceError
from splitquant.onnx.dtypes import DTYPE_OF, name_of, nbytes_of
from splitquant.storage.files import SourceFile
from splitquant.storage.memory import Buffers

LARGEST_TENSOR = 1 << 48


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One constant of a model and where its bytes are: `inline`, or in `file` at `offset`."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    nbytes: int
    inline: U8 | None
    file: SourceFile | None = None
    offset: int = 0

    @property
    def weights(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def read_into(self, buffer: U8, start: int) -> None:
        """Fill `buffer` with the bytes from `start` on."""
        if self.inline is not None:
            buffer[:] = self.inline[start : start + buffer.nbytes]
        else:
            assert self.file is not None
            self.file.read_into(buffer, self.offset + start)

    def slab(self, dtype: np.dtype[Any], axis: int, start: int, stop: int, buffers: Buffers) -> NDArray[Any]:
        """The part of the tensor with `start <= index < stop` along `axis`, as an array of `dtype`.

        Valid until the next call with the same buffers.
        """
        before, after = math.prod(self.shape[:axis]), math.prod(self.shape[axis + 1 :])
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        if self.inline is not None:
            whole = self.inline.view(dtype).reshape(self.shape)
            return whole[(slice(None),) * axis + (slice(start, stop),)]
        row = after * dtype.itemsize
        slab = buffers.get("slab", before * (stop - start) * row).reshape(before, (stop - start) * row)
        if before == 1 or slab.shape[1] == self.shape[axis] * row:
            self.read_into(slab.reshape(-1), start * row)
        else:
            for line in range(before):
                self.read_into(slab[line], (line * self.shape[axis] + start) * row)
        return slab.reshape(-1).view(dtype).reshape(shape)


def check_header(proto: TensorProto, where: str) -> int:
    """The bytes that a tensor of this header takes; SourceError for a shape or an element type that cannot be."""
    if proto.data_type not in DTYPE_OF:
        if proto.data_type == TensorProto.STRING:
            return 0
        raise SourceError(f"{where} has the unknown element type {proto.data_type}; export the model again")
    if any(n < 0 for n in proto.dims):
        raise SourceError(
            f"{where} has the shape {list(proto.dims)}; expected no negative size: export the model again"
        )
    nbytes = nbytes_of(proto.data_type, math.prod(proto.dims))
    if nbytes > LARGEST_TENSOR:
        raise SourceError(f"{where} has the shape {list(proto.dims)}, which is more than a file can hold")
    return nbytes


def inline_tensor(proto: TensorProto, where: str) -> StoredTensor:
    """A tensor whose bytes are in the model; SourceError where they do not fit its shape and element type."""
    expected = check_header(proto, where)
    shape = tuple(proto.dims)
    if proto.data_type == TensorProto.STRING:
        return StoredTensor(proto.name, proto.data_type, shape, 0, np.zeros(0, np.uint8))
    if proto.HasField("raw_data"):
        raw = proto.raw_data
        if len(raw) != expected:
            raise SourceError(
                f"{where} has {len(raw)} bytes of raw_data; {name_of(proto.data_type)} of shape {list(shape)} takes "
                f"{expected}: the file is damaged, export the model again"
            )
        return StoredTensor(proto.name, proto.data_type, shape, expected, np.frombuffer(raw, np.uint8))
    try:
        _check_typed(proto, where)
        array = numpy_helper.to_array(proto)
        data = np.frombuffer(numpy_helper.from_array(array).raw_data, np.uint8)
    except (ValueError, TypeError) as error:
        raise SourceError(f"{where} cannot be read ({error}); export the model again") from error
    return StoredTensor(proto.name, proto.data_type, shape, expected, data)


def _check_typed(proto: TensorProto, where: str) -> None:
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    found = max(len(getattr(proto, field)) for field in fields)
    weights = math.prod(proto.dims)
    per_entry = 8 // DTYPE_OF[proto.data_type].bits if DTYPE_OF[proto.data_type].bits < 8 else 1
    expected = -(-weights // per_entry)
    if proto.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        expected *= 2
    if found != expected:
        raise SourceError(
            f"{where} has {found} values; {name_of(proto.data_type)} of shape {list(proto.dims)} takes {expected}: "
            "the file is damaged, export the model again"
        )
