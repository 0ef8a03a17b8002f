"""A quantized folder, opened for reading: which tensors it holds, by which spec, and their planes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitquant.checkpoint.folder import Folder, open_folder
from splitquant.checkpoint.safetensors import Entry as Header
from splitquant.checkpoint.safetensors import tensor_bytes
from splitquant.core.histogram import Kind
from splitquant.core.rows import unpack_row_scale
from splitquant.core.spec import QuantSpec
from splitquant.core.split import SplitTensor, levels_from
from splitquant.errors import SourceError
from splitquant.plan.planes import SAFETENSORS_DTYPE, Geometry, Plane, geometry, planes_of, scale_kind_of
from splitquant.plan.table import METHOD, Entry, parse_table
from splitquant.report.outcome import REPORT_NAME, Report, TensorOutcome
from splitquant.storage.files import SourceFile
from splitquant.storage.json_file import read_json

U8 = NDArray[np.uint8]
NUMPY_DTYPE: dict[str, Any] = {"U8": np.uint8, "BF16": np.uint16, "F16": np.float16, "F32": np.float32, "I64": np.int64}
MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One quantized tensor of a folder."""

    name: str
    shape: tuple[int, ...]
    axis: int
    stack: bool
    kind: Kind
    spec: QuantSpec

    @property
    def geometry(self) -> Geometry:
        """The matrices it consists of."""
        return geometry(self.shape, self.axis, self.stack)

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The stored tensors that stand for it."""
        return planes_of(self.shape, self.axis, self.stack, self.kind, self.spec)


@dataclass(frozen=True, slots=True)
class QuantizedFolder:
    """A checked quantized folder. Every plane that its configuration announces is there, with the right dtype and shape.

    tensors: the quantized ones by name; kept: those that are stored as they were.
    """

    folder: Folder
    tensors: Mapping[str, StoredTensor]
    kept: Mapping[str, Header]

    @property
    def float_bytes(self) -> int:
        """Bytes of all tensors of the float folder that this one stands for."""
        stored = sum(tensor_bytes(SAFETENSORS_DTYPE[t.kind], t.shape) for t in self.tensors.values())
        return stored + sum(entry.nbytes for entry in self.kept.values())

    def outline(self) -> Report:
        """What the headers and the configuration tell, without figures, for a folder that has no report."""
        stored = [
            TensorOutcome(
                name=tensor.name,
                outcome="quantized",
                reason="",
                role="other",
                dtype=SAFETENSORS_DTYPE[tensor.kind],
                shape=tensor.shape,
                source_bytes=tensor_bytes(SAFETENSORS_DTYPE[tensor.kind], tensor.shape),
                stored_bytes=sum(plane.nbytes for plane in tensor.planes),
                spec=tensor.spec,
                figures=None,
                checksums={},
            )
            for tensor in self.tensors.values()
        ]
        kept = [
            TensorOutcome(
                name=name,
                outcome="kept",
                reason="as it was",
                role="other",
                dtype=entry.dtype,
                shape=entry.shape,
                source_bytes=entry.nbytes,
                stored_bytes=entry.nbytes,
                spec=None,
                figures=None,
                checksums={},
            )
            for name, entry in self.kept.items()
        ]
        return Report((*stored, *kept))

    def report(self) -> Report:
        """The report that was written with the folder; SourceError where it is missing or damaged."""
        path = self.folder.path / REPORT_NAME
        try:
            return Report.from_dict(read_json(path))
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{path}: is not a report of this version ({error}); quantize the model again") from error

    def rows(self, tensor: StoredTensor, index: int, first: int, last: int) -> SplitTensor:
        """Rows `[first, last)` of matrix `index` of a tensor, as the SplitTensor of those rows, channel axis first."""
        planes = {plane.name: self._read_plane(tensor, plane, index, first, last) for plane in tensor.planes}
        clusters, row_scale = planes.get("clusters"), planes.get("row_scale")
        scale, offset, levels = levels_from(tensor.spec, planes)
        return SplitTensor(
            shape=(last - first, tensor.geometry.cols),
            axis=0,
            spec=tensor.spec,
            codes=planes["codes"],
            clusters=clusters,
            scale=scale,
            offset=offset,
            levels=levels,
            row_scale=None if row_scale is None else unpack_row_scale(row_scale),
            row_scale_kind=scale_kind_of(tensor.kind, tensor.spec),
        )

    def read(self, name: str, offset: int, nbytes: int) -> U8:
        """Bytes of a stored tensor, uint8 `[nbytes]`."""
        entry = self.folder.tensors[name]
        raw = np.empty(nbytes, np.uint8)
        with SourceFile(self.folder.path / self.folder.shard_of[name]) as file:
            file.read_into(raw, entry.start + offset)
        return raw

    def _read_plane(self, tensor: StoredTensor, plane: Plane, index: int, first: int, last: int) -> Any:
        """The part of a plane that belongs to some rows of a matrix; per-matrix planes come whole."""
        shape = plane.shape[1:] if tensor.stack and plane.name != "shape" else plane.shape
        if plane.name in ("scale", "offset", "levels", "shape"):
            first, last, width = 0, 1, plane.nbytes // (tensor.geometry.count if plane.name != "shape" else 1)
            at = index * width if plane.name != "shape" else 0
        else:
            width = plane.nbytes // (tensor.geometry.count * tensor.geometry.rows)
            at = (index * tensor.geometry.rows + first) * width
        raw = self.read(f"{tensor.name}.{plane.name}", at, (last - first) * width)
        return raw.view(NUMPY_DTYPE[plane.dtype]).reshape(-1, *shape[1:])


def open_quantized(path: Path) -> QuantizedFolder:
    """Open a folder that splitquant wrote; SourceError names what is missing or does not fit."""
    folder = open_folder(path)
    file = path / "config.json"
    config = folder.config.get("quantization_config")
    method = config.get("quant_method") if isinstance(config, dict) else None
    if not isinstance(config, dict) or method != METHOD:
        raise SourceError(
            f"{file}: is no splitquant folder (quant_method is {method!r}); expected a folder that 'splitquant quantize' wrote"
        )
    table = parse_table(config, str(file))
    tensors = {name: _stored_tensor(folder, name, entry) for name, entry in table.items()}
    planes = {f"{tensor.name}.{plane.name}" for tensor in tensors.values() for plane in tensor.planes}
    return QuantizedFolder(
        folder, tensors, kept={name: entry for name, entry in folder.tensors.items() if name not in planes}
    )


def _stored_tensor(folder: Folder, name: str, entry: Entry) -> StoredTensor:
    shape = _read_shape(folder, name)
    if entry.axis >= len(shape):
        raise SourceError(
            f"{folder.path / 'config.json'}: tensor {name!r} of shape {list(shape)} has no axis {entry.axis}"
        )
    tensor = StoredTensor(name, shape, entry.axis, entry.stack, entry.kind, entry.spec)
    for plane in tensor.planes:
        _check_plane(folder, f"{name}.{plane.name}", plane.dtype, plane.shape)
    return tensor


def _read_shape(folder: Folder, name: str) -> tuple[int, ...]:
    entry = folder.tensors.get(f"{name}.shape")
    if entry is None or entry.dtype != "I64" or len(entry.shape) != 1 or not 1 <= entry.shape[0] <= MAX_DIMENSIONS:
        raise SourceError(
            f"{folder.path}: tensor '{name}.shape' is missing or not a list of I64; the folder is incomplete: copy it again"
        )
    raw = np.empty(entry.nbytes, np.uint8)
    with SourceFile(folder.path / folder.shard_of[entry.name]) as file:
        file.read_into(raw, entry.start)
    shape = tuple(raw.view("<i8").tolist())
    if min(shape) < 1:
        raise SourceError(f"{folder.path}: tensor '{name}.shape' holds {shape}; expected positive numbers")
    return shape


def _check_plane(folder: Folder, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    entry = folder.tensors.get(name)
    if entry is None:
        raise SourceError(f"{folder.path}: tensor {name!r} is missing; the folder is incomplete: copy it again")
    if (entry.dtype, entry.shape) != (dtype, shape):
        raise SourceError(
            f"{folder.path / folder.shard_of[name]}: tensor {name!r} is {entry.dtype} {list(entry.shape)}; "
            f"expected {dtype} {list(shape)} by config.json"
        )
