"""A quantized folder, opened for reading: which tensors it holds, by which spec, and their planes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from splitquant.checkpoint.folder import Folder, open_folder
from splitquant.checkpoint.safetensors import Entry as Header
from splitquant.core.arrays import U8
from splitquant.core.kernels import kernels
from splitquant.core.rows import unpack_row_scale
from splitquant.core.split import SplitTensor, levels_from
from splitquant.errors import SourceError
from splitquant.format.config import METHOD, parse_table
from splitquant.format.damage import damage_of, damage_of_ids
from splitquant.format.dtypes import DTYPE_OF_KIND, DTYPES
from splitquant.format.planes import Plane, plane_key
from splitquant.format.weight import Weight
from splitquant.report.outcome import REPORT_NAME, Outcome, Report
from splitquant.storage.files import SourceFile
from splitquant.storage.json_file import read_json
from splitquant.storage.memory import MIB

MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class QuantizedFolder:
    """A checked quantized folder. Every plane that its configuration announces is there, with the right dtype and shape.

    tensors: the quantized ones by name; kept: those that are stored as they were.
    """

    folder: Folder
    tensors: Mapping[str, Weight]
    kept: Mapping[str, Header]

    @property
    def float_bytes(self) -> int:
        """Bytes of all tensors of the float folder that this one stands for."""
        stored = sum(DTYPE_OF_KIND[weight.kind].nbytes(weight.shape) for weight in self.tensors.values())
        return stored + sum(entry.nbytes for entry in self.kept.values())

    def outline(self) -> Report:
        """What the headers and the configuration tell, without figures, for a folder that has no report."""
        stored = [
            Outcome(
                name=name,
                outcome="quantized",
                reason="",
                role="other",
                dtype=DTYPE_OF_KIND[weight.kind].name,
                shape=weight.shape,
                source_bytes=DTYPE_OF_KIND[weight.kind].nbytes(weight.shape),
                stored_bytes=weight.nbytes,
                spec=weight.spec,
            )
            for name, weight in self.tensors.items()
        ]
        kept = [
            Outcome(
                name=name,
                outcome="kept",
                reason="as it was",
                role="other",
                dtype=entry.dtype,
                shape=entry.shape,
                source_bytes=entry.nbytes,
                stored_bytes=entry.nbytes,
            )
            for name, entry in self.kept.items()
        ]
        return Report((*stored, *kept))

    def known_report(self) -> Report:
        """The report that was written with the folder, or its outline."""
        return self.report() if (self.folder.path / REPORT_NAME).exists() else self.outline()

    def report(self) -> Report:
        """The report that was written with the folder; SourceError where it is missing or damaged."""
        path = self.folder.path / REPORT_NAME
        try:
            return Report.from_dict(read_json(path, 256 * MIB))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SourceError(f"{path}: is not a report of this version ({error}); quantize the model again") from error

    def rows(self, name: str, index: int, first: int, last: int) -> SplitTensor:
        """Rows `[first, last)` of matrix `index` of a tensor, as the SplitTensor of those rows, channel axis first.

        SourceError where their scales or cluster ids cannot be.
        """
        weight = self.tensors[name]
        planes = {plane.name: self._read_plane(name, plane, index, first, last) for plane in weight.planes}
        clusters, row_scale, zero = planes.get("clusters"), planes.get("row_scale"), planes.get("zero_points")
        scale, offset, levels = levels_from(weight.spec, planes)
        if row_scale is not None:
            row_scale = unpack_row_scale(row_scale)
            _refuse_damage(self.folder, plane_key(name, "row_scale"), damage_of("row_scale", row_scale))
        if clusters is not None:
            damage = damage_of_ids(clusters, weight.geometry.cols, weight.spec)
            _refuse_damage(self.folder, plane_key(name, "clusters"), damage)
        return SplitTensor(
            shape=(last - first, weight.geometry.cols),
            axis=0,
            spec=weight.spec,
            codes=planes["codes"],
            clusters=clusters,
            scale=scale,
            offset=offset,
            levels=levels,
            row_scale=row_scale,
            row_scale_kind=weight.scale_kind,
            zero=None
            if zero is None
            else kernels().unpack(zero, weight.spec.groups(weight.geometry.cols), weight.spec.bits),
        )

    def read(self, name: str, offset: int, nbytes: int) -> U8:
        """Bytes of a stored tensor, uint8 `[nbytes]`."""
        entry = self.folder.tensors[name]
        raw = np.empty(nbytes, np.uint8)
        with SourceFile(self.folder.path / self.folder.shard_of[name]) as file:
            file.read_into(raw, entry.start + offset)
        return raw

    def _read_plane(self, name: str, plane: Plane, index: int, first: int, last: int) -> Any:
        """The part of a plane that belongs to some rows of a matrix; what all rows share comes whole."""
        g = self.tensors[name].geometry
        pieces = {"row": g.count * g.rows, "matrix": g.count, "tensor": 1}[plane.per]
        width = plane.nbytes // pieces
        start, count = {"row": (index * g.rows + first, last - first), "matrix": (index, 1), "tensor": (0, 1)}[
            plane.per
        ]
        shape = plane.shape[1:] if self.tensors[name].stack and plane.per != "tensor" else plane.shape
        raw = self.read(plane_key(name, plane.name), start * width, count * width)
        return raw.view(DTYPES[plane.dtype].numpy).reshape(-1, *shape[1:])


def open_quantized(path: Path) -> QuantizedFolder:
    """Open a folder that splitquant wrote; SourceError names what is missing or does not fit."""
    return with_table(open_folder(path))


def is_quantized(folder: Folder) -> bool:
    """Whether a folder says that splitquant wrote it."""
    config = folder.config.get("quantization_config")
    return isinstance(config, dict) and config.get("quant_method") == METHOD


def with_table(folder: Folder) -> QuantizedFolder:
    """A folder with what its configuration says of its tensors; SourceError names what is missing or does not fit."""
    file = folder.path / "config.json"
    config = folder.config.get("quantization_config")
    method = config.get("quant_method") if isinstance(config, dict) else None
    if not isinstance(config, dict) or method != METHOD:
        raise SourceError(
            f"{file}: is no splitquant folder (quant_method is {method!r}); expected a folder that 'splitquant quantize' wrote"
        )
    table = parse_table(config, str(file))
    tensors = {name: _with_shape(folder, name, weight) for name, weight in table.items()}
    planes = {plane for name, weight in tensors.items() for plane, _, _ in weight.stored(name)}
    _refuse_orphans(folder, tensors)
    return QuantizedFolder(
        folder, tensors, kept={name: entry for name, entry in folder.tensors.items() if name not in planes}
    )


def _with_shape(folder: Folder, name: str, weight: Weight) -> Weight:
    """The weight with the shape that its plane holds, all planes checked."""
    shape = _read_shape(folder, name)
    if weight.axis >= len(shape):
        raise SourceError(
            f"{folder.path / 'config.json'}: tensor {name!r} of shape {list(shape)} has no axis {weight.axis}"
        )
    weight = replace(weight, shape=shape)
    for plane, dtype, plane_shape in weight.stored(name):
        _check_plane(folder, plane, dtype, plane_shape)
    for part in weight.planes:
        if part.per == "matrix":  # some numbers each; what is of rows is checked when these are read
            values = _read_whole(folder, plane_key(name, part.name)).view(DTYPES[part.dtype].numpy).reshape(part.shape)
            _refuse_damage(folder, plane_key(name, part.name), damage_of(part.name, values))
    return weight


def _refuse_orphans(folder: Folder, tensors: Mapping[str, Weight]) -> None:
    """SourceError for planes of a tensor that config.json does not have: it would be taken for other tensors."""
    for key, entry in folder.tensors.items():
        name = key.removesuffix(".codes")
        if name == key or name in tensors or entry.dtype != "U8":
            continue
        shape = folder.tensors.get(plane_key(name, "shape"))
        if shape is not None and shape.dtype == "I64":
            raise SourceError(
                f"{folder.path / folder.shard_of[key]}: tensor {key!r} is a plane of {name!r}, which config.json does not have "
                "among its quantized tensors; the two are not of one folder: copy it again"
            )


def _refuse_damage(folder: Folder, key: str, damage: str) -> None:
    if damage:
        raise SourceError(
            f"{folder.path / folder.shard_of[key]}: tensor {key!r} {damage}; the file is damaged: copy it or quantize again"
        )


def _read_whole(folder: Folder, key: str) -> U8:
    entry = folder.tensors[key]
    raw = np.empty(entry.nbytes, np.uint8)
    with SourceFile(folder.path / folder.shard_of[key]) as file:
        file.read_into(raw, entry.start)
    return raw


def _read_shape(folder: Folder, name: str) -> tuple[int, ...]:
    entry = folder.tensors.get(plane_key(name, "shape"))
    if entry is None or entry.dtype != "I64" or len(entry.shape) != 1 or not 1 <= entry.shape[0] <= MAX_DIMENSIONS:
        raise SourceError(
            f"{folder.path}: tensor {plane_key(name, 'shape')!r} is missing or not a list of I64; the folder is incomplete: copy it again"
        )
    shape = tuple(_read_whole(folder, entry.name).view("<i8").tolist())
    if min(shape) < 1:
        raise SourceError(
            f"{folder.path}: tensor {plane_key(name, 'shape')!r} holds {shape}; expected positive numbers"
        )
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
