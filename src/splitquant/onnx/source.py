"""An ONNX model opened for conversion: its graph in memory, its weights where they lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from google.protobuf.message import DecodeError, EncodeError, Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from splitquant.errors import SourceError
from splitquant.onnx.dtypes import nbytes_of
from splitquant.onnx.external import ExternalFiles
from splitquant.onnx.stored import StoredTensor, check_header, inline_tensor
from splitquant.onnx.wire import Span, read_skeleton

_IN_MEMORY = Path("the model in memory")
_LEAST_DETACHED = 1024


class Source:
    """An opened model.

    proto: a copy of the graph, whose large initializers have a name, a type and a shape, but no bytes.
    label: what errors call the model. tensors: the initializers of the main graph, by name.
    """

    def __init__(self, model: ModelProto | str | Path) -> None:
        self.path = None if isinstance(model, ModelProto) else Path(model)
        self.label = str(self.path or _IN_MEMORY)
        self.files = ExternalFiles(self.path or _IN_MEMORY)
        try:
            if self.path is None:
                assert isinstance(model, ModelProto)
                self.proto = ModelProto()
                self.proto.CopyFrom(model)
                spans: dict[int, Span] = {}
            else:
                skeleton = read_skeleton(self.path)
                self.proto = _parsed(self.path, skeleton.model)
                spans = skeleton.spans
            self._refuse_other()
            self._refuse_hidden_files()
            self.tensors = self._detach(spans)
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
            return self.files.tensor(proto, where)
        return inline_tensor(proto, where)

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

    def _detach(self, spans: dict[int, Span]) -> dict[str, StoredTensor]:
        """Move the bytes of the main graph's initializers out of the proto, and check each."""
        tensors: dict[str, StoredTensor] = {}
        graph: GraphProto = self.proto.graph
        for position, proto in enumerate(graph.initializer):
            where = f"{self.label}: tensor {proto.name!r}"
            if not proto.name or proto.name in tensors:
                raise SourceError(f"{where} is there twice, or has no name; export the model again")
            if position in spans:
                tensors[proto.name] = self._spanned(proto, spans[position], where)
                continue
            tensors[proto.name] = self.stored(proto, where)
            if proto.data_location == TensorProto.EXTERNAL or tensors[proto.name].nbytes >= _LEAST_DETACHED:
                strip(proto)
        return tensors

    def _spanned(self, proto: TensorProto, span: Span, where: str) -> StoredTensor:
        expected = check_header(proto, where)
        if expected != span.nbytes or proto.data_location == TensorProto.EXTERNAL:
            raise SourceError(
                f"{where} has {span.nbytes} bytes of raw_data; its shape {list(proto.dims)} takes {expected}: "
                "the file is damaged, export the model again"
            )
        assert self.path is not None
        file = self.files.at(self.path)
        return StoredTensor(proto.name, proto.data_type, tuple(proto.dims), expected, None, file, span.offset)


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
