"""An ONNX model opened for conversion: its graph in memory, its weights where they lie."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from google.protobuf.message import DecodeError, EncodeError, Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from splitquant.errors import SourceError
from splitquant.onnx.dtypes import nbytes_of
from splitquant.onnx.wire.external import ExternalFiles
from splitquant.onnx.wire.skeleton import read_skeleton
from splitquant.onnx.wire.stored import StoredTensor, check_header, inline_tensor

_IN_MEMORY = Path("the model in memory")
LEAST_DETACHED = 1024


class Source:
    """An opened model.

    proto: a copy of the graph, whose large weights have a name, a type and a shape, but no bytes.
    label: what errors call the model. tensors: the initializers of the main graph, by name.
    """

    def __init__(self, model: ModelProto | str | Path) -> None:
        self.path = None if isinstance(model, ModelProto) else Path(model)
        self.label = str(self.path or _IN_MEMORY)
        self.files = ExternalFiles(self.path or _IN_MEMORY)
        # How the graph calls the model's own file: no model can know it beforehand, and no path is like it.
        self._own = f"/{secrets.token_hex(16)}"
        try:
            if self.path is None:
                assert isinstance(model, ModelProto)
                self.proto = _without_weights(model)
            else:
                self.proto = _parsed(self.path, read_skeleton(self.path, self._own))
            self._refuse_other()
            self._refuse_hidden_files()
            self.tensors = self._detach(model.graph if isinstance(model, ModelProto) else self.proto.graph)
        except BaseException:
            self.files.close()
            raise

    def stored(self, proto: TensorProto, where: str) -> StoredTensor:
        """Where a tensor's bytes are, checked."""
        if proto.data_location == TensorProto.EXTERNAL:
            if self.path is None:
                raise SourceError(
                    f"{where} has external data, and a model in memory has no folder; give the path of its file, or load its data first"
                )
            if proto.external_data[:1] and proto.external_data[0].value == self._own:
                return self._spanned(proto, where)
            return self.files.tensor(proto, where)
        return inline_tensor(proto, where)

    def copied(self) -> Source:
        """The same source with a graph of its own, to be tried something on."""
        other = copy.copy(self)
        other.proto = ModelProto()
        other.proto.CopyFrom(self.proto)
        return other

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of the model: its own, and the external data that was opened."""
        return self.files.paths if self.path is None else (self.path, *self.files.paths)

    @property
    def has_external_data(self) -> bool:
        """Whether the model came with external data."""
        return any(path != self.path for path in self.files.paths)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.files.close()

    def _refuse_hidden_files(self) -> None:
        """SourceError for external data in a tensor that is neither an initializer nor the value of a Constant."""
        for tensor in _hidden_tensors(self.proto):
            if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
                raise SourceError(
                    f"{self.label}: tensor {tensor.name!r} has external data, and is neither an initializer nor a Constant; "
                    "save the model again with this tensor inside"
                )

    def _refuse_other(self) -> None:
        if not self.proto.HasField("graph") or not self.proto.opset_import:
            raise SourceError(f"{self.label}: holds no graph or no opset; it is not an ONNX model: export it again")

    def _detach(self, original: GraphProto) -> dict[str, StoredTensor]:
        """Take the bytes of the main graph's initializers from where they are, and check each."""
        tensors: dict[str, StoredTensor] = {}
        graph: GraphProto = self.proto.graph
        for given, proto in zip(original.initializer, graph.initializer, strict=True):
            where = f"{self.label}: tensor {proto.name!r}"
            if not proto.name or proto.name in tensors:
                raise SourceError(f"{where} is there twice, or has no name; export the model again")
            tensors[proto.name] = self.stored(given, where)
            if proto.data_location == TensorProto.EXTERNAL or tensors[proto.name].nbytes >= LEAST_DETACHED:
                strip(proto)
        return tensors

    def _spanned(self, proto: TensorProto, where: str) -> StoredTensor:
        """A tensor whose bytes are in the model's own file."""
        expected = check_header(proto, where)
        _, offset, nbytes = (entry.value for entry in proto.external_data)
        if expected != int(nbytes):
            raise SourceError(
                f"{where} has {nbytes} bytes of raw_data; its shape {list(proto.dims)} takes {expected}: "
                "the file is damaged, export the model again"
            )
        assert self.path is not None
        file = self.files.at(self.path)
        return StoredTensor(proto.name, proto.data_type, tuple(proto.dims), expected, None, file, int(offset))


def locations_of(path: Path) -> set[str]:
    """What a model file calls the files of its external data; SourceError where it is no model."""
    found = {
        entry.value
        for tensor in _tensors(_parsed(path, read_skeleton(path, "")))
        for entry in tensor.external_data
        if entry.key == "location" and entry.value
    }
    for location in found:
        if not isinstance(location, str):
            raise SourceError(f"{path}: has external data at {location!r}, which is no path; export the model again")
    return found


def data_files_of(path: Path) -> list[Path]:
    """The files that are there of those that a model says hold its external data, whatever else it says."""
    found = []
    for location in sorted(locations_of(path)):
        file = path.parent / location
        with suppress(OSError, ValueError):  # names that no file can have
            if file.is_file():
                found.append(file)
    return found


def _tensors(message: Message) -> Iterator[TensorProto]:
    """All tensors in a message."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, content in message.ListFields():
        if field.message_type is not None:
            for one in [content] if isinstance(content, Message) else content:
                yield from _tensors(one)


def _without_weights(model: ModelProto) -> ModelProto:
    """A copy of a model without the raw bytes of its large initializers: they are never in memory twice for it."""
    copied = ModelProto()
    _copy_fields(model, copied, "graph")
    _copy_fields(model.graph, copied.graph, "initializer")
    for tensor in model.graph.initializer:
        large = len(tensor.raw_data) >= LEAST_DETACHED
        _copy_fields(tensor, copied.graph.initializer.add(), "raw_data" if large else "")
    return copied


def _copy_fields(old: Message, new: Message, left_out: str) -> None:
    for field, content in old.ListFields():
        if field.name == left_out:
            continue
        if hasattr(content, "MergeFrom"):  # messages and repeated fields
            getattr(new, field.name).MergeFrom(content)
        else:
            setattr(new, field.name, content)


def _hidden_tensors(message: Message, *, known: bool = False) -> Iterator[TensorProto]:
    """All tensors in a message, but for initializers and the values of Constant nodes."""
    if isinstance(message, TensorProto):
        if not known:
            yield message
        return
    constant = isinstance(message, NodeProto) and message.op_type == "Constant" and message.domain in ("", "ai.onnx")
    for field, content in message.ListFields():
        if field.message_type is None:
            continue
        inside = isinstance(message, GraphProto) and field.name == "initializer"
        for one in content if isinstance(content, Iterable) else (content,):
            if constant and isinstance(one, AttributeProto) and one.name == "value":
                continue
            yield from _hidden_tensors(one, known=inside)


def strip(proto: TensorProto) -> None:
    """Take the bytes out of a tensor; name, type and shape stay."""
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
        proto.ClearField(field)
    proto.ClearField("data_location")
    proto.raw_data = b""


def is_stripped(proto: TensorProto) -> bool:
    """Whether `strip` took the bytes of a tensor that has some."""
    weights = 1
    for n in proto.dims:
        weights *= n
    typed = any(
        len(getattr(proto, field))
        for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    )
    return (
        not proto.raw_data
        and not typed
        and proto.data_type != TensorProto.STRING
        and proto.data_location != TensorProto.EXTERNAL
        and nbytes_of(proto.data_type, weights) > 0
    )


def _parsed(path: Path, data: bytes) -> ModelProto:
    model = ModelProto()
    with suppress(DecodeError, EncodeError, UnicodeDecodeError, RecursionError):
        model.ParseFromString(data)
        return model
    raise SourceError(f"{path}: is no ONNX model, or damaged; export it again")
