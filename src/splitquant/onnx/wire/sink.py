"""Where the bytes of tensors go: to their places in the model file, or in one external data file beside it.

Every tensor has its place before the first byte is computed, so threads may write in any order and the files come out
the same.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from onnx import ModelProto, TensorProto

from splitquant.core.arrays import U8
from splitquant.errors import DestinationError
from splitquant.onnx.wire.destination import Destination
from splitquant.onnx.wire.layout import laid_out
from splitquant.onnx.wire.skeleton import LARGEST_FILE
from splitquant.onnx.wire.stored import StoredTensor
from splitquant.storage.files import TargetFile

ALIGNMENT = 4096  # a page: runtimes map external data into memory
LEAST_EXTERNAL = 1024
_COPY = 8 << 20


class Place:
    """Room for one tensor; bytes can be put there once the sink is open."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._memory: U8 | None = None
        self._file: TargetFile | None = None
        self._offset = 0

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

    def _write(self, data: U8, at: int) -> None:
        if self._memory is not None:
            self._memory[at : at + data.nbytes] = data
        else:
            assert self._file is not None
            self._file.write(np.ascontiguousarray(data), self._offset + at)

    def in_memory(self) -> None:
        """Keep the bytes until `taken`."""
        self._memory = np.zeros(self.nbytes, np.uint8)

    def in_file(self, file: TargetFile, offset: int) -> None:
        """Write the bytes to a file, from `offset` on."""
        self._file, self._offset = file, offset

    def taken(self) -> bytes:
        """The bytes, which are not held any longer."""
        assert self._memory is not None
        data, self._memory = self._memory.tobytes(), None
        return data


class Sink:
    """Gives places to tensors, then opens what these are in: memory, or files."""

    def __init__(self) -> None:
        self._rooms: list[tuple[TensorProto, Place]] = []
        self._files: list[TargetFile] = []
        self._held = False

    def place(self, proto: TensorProto, nbytes: int) -> Place:
        """Room for the bytes of a tensor, whatever it had before."""
        for field in ("raw_data", "external_data", "data_location"):
            proto.ClearField(field)
        place = Place(nbytes)
        self._rooms.append((proto, place))
        return place

    def open_memory(self) -> None:
        """All places are in memory; `finish` gives the bytes to the tensors."""
        self._held = True
        for _, place in self._rooms:
            place.in_memory()

    def open_files(self, model: ModelProto, target: Destination, *, external: bool) -> None:
        """Write the graph, with room for its weights in the same file, or in external data for all but small ones.

        Raises DestinationError for a graph that is too large, and for a disk that is too full.
        """
        offsets = self._point_outside(target.location) if external else []
        external = len(offsets) > 0
        inside = self._rooms if not external else [room for room in self._rooms if room[1].nbytes < LEAST_EXTERNAL]
        layout = laid_out(model, {id(proto): place.nbytes for proto, place in inside})
        if layout.nbytes >= LARGEST_FILE:
            raise DestinationError(
                f"{target.path}: the graph takes {layout.nbytes} bytes without its large weights; an ONNX file ends below "
                f"{LARGEST_FILE}"
            )
        ends = offsets[-1][1] + offsets[-1][0].nbytes if offsets else 0
        target.prepare(layout.nbytes + ends, with_data=external)
        if external:
            data = self._opened(target.growing_data, ends)
            for place, offset in offsets:
                place.in_file(data, offset)
        file = self._opened(target.growing, layout.nbytes)
        for proto, place in inside:
            place.in_file(file, layout.offsets[id(proto)])
        for offset, text in layout.text:
            file.write(text, offset)

    def file_bytes(self, model: ModelProto) -> int:
        """The size of the file with all weights in it."""
        return laid_out(model, {id(proto): place.nbytes for proto, place in self._rooms}).nbytes

    def external_bytes(self, model: ModelProto, location: str) -> int:
        """The size of the file and of its external data together; the tensors of the model refer to it afterwards."""
        offsets = self._point_outside(location)
        inside = {id(proto): place.nbytes for proto, place in self._rooms if place.nbytes < LEAST_EXTERNAL}
        return laid_out(model, inside).nbytes + (offsets[-1][1] + offsets[-1][0].nbytes if offsets else 0)

    def finish(self) -> None:
        """Close the files, or give the bytes to the tensors; DestinationError where the system reports a late write error."""
        while self._files:
            self._files.pop().close()
        if self._held:
            for proto, place in self._rooms:
                proto.raw_data = place.taken()

    def _point_outside(self, location: str) -> list[tuple[Place, int]]:
        """Make all but small tensors refer to external data; where each of them begins there."""
        offsets: list[tuple[Place, int]] = []
        end = 0
        for proto, place in self._rooms:
            if place.nbytes < LEAST_EXTERNAL:
                continue
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            end = offset + place.nbytes
            offsets.append((place, offset))
            proto.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", str(offset)), ("length", str(place.nbytes))):
                proto.external_data.add(key=key, value=value)
        return offsets

    def _opened(self, path: Path, nbytes: int) -> TargetFile:
        file = TargetFile(path, nbytes)
        self._files.append(file)
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._files:
            self._files.pop().close()
