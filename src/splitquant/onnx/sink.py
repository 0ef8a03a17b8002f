"""Where the bytes of new tensors go: into the model itself, or into one external data file beside it.

Every tensor has its place before the first byte is computed, so threads may write in any order and the file comes out
the same.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from onnx import TensorProto

from splitquant.checkpoint.files import TargetFile
from splitquant.onnx.stored import U8, StoredTensor

ALIGNMENT = 4096  # a page: runtimes map external data into memory
LEAST_EXTERNAL = 1024
_COPY = 8 << 20


class Place:
    """Room for one tensor."""

    def __init__(self, nbytes: int, file: TargetFile | None, offset: int) -> None:
        self.nbytes = nbytes
        self._memory: U8 | None = np.zeros(nbytes, np.uint8) if file is None else None
        self._file = file
        self._offset = offset

    def put(self, slab: U8, row_bytes: int, column: int) -> None:
        """Write `slab[r]` at byte `r * row_bytes + column`, for every r."""
        height, width = slab.shape
        if height == 1 or width == row_bytes:
            self._write(slab.reshape(-1), column)
        elif self._memory is not None:
            self._memory.reshape(height, row_bytes)[:, column : column + width] = slab
        else:
            for row in range(height):
                self._write(slab[row], row * row_bytes + column)

    def copy_of(self, tensor: StoredTensor) -> None:
        """Fill with the bytes of a stored tensor."""
        for at in range(0, tensor.nbytes, _COPY):
            piece = np.empty(min(_COPY, tensor.nbytes - at), np.uint8)
            tensor.read_into(piece, at)
            self._write(piece, at)

    def describe(self, proto: TensorProto, location: str) -> None:
        """Make a tensor's header point here, or hold the bytes itself."""
        proto.ClearField("raw_data")
        proto.ClearField("external_data")
        if self._memory is not None:
            proto.ClearField("data_location")
            proto.raw_data = self._memory.tobytes()
            self._memory = None
            return
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(self._offset)), ("length", str(self.nbytes))):
            proto.external_data.add(key=key, value=value)

    def _write(self, data: U8, at: int) -> None:
        if self._memory is not None:
            self._memory[at : at + data.nbytes] = data
        else:
            assert self._file is not None
            self._file.write(np.ascontiguousarray(data), self._offset + at)


class Sink:
    """Gives places to tensors; `path` None keeps all of them in memory."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else TargetFile(path, 0)
        self._end = 0

    def place(self, nbytes: int) -> Place:
        """Room for a tensor of so many bytes; small ones stay in the model."""
        if self._file is None or nbytes < LEAST_EXTERNAL:
            return Place(nbytes, None, 0)
        offset = -(-self._end // ALIGNMENT) * ALIGNMENT
        self._end = offset + nbytes
        return Place(nbytes, self._file, offset)

    def close(self) -> None:
        """Close the external data file; DestinationError where the system reports a late write error."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
