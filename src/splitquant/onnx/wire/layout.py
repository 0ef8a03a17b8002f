"""The bytes of an ONNX file with room left for its weights.

Why: a graph is known before its weights are, and so are their sizes. With their places fixed, weights are written where
they belong, by any thread, and the model never has to be in memory with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from splitquant.onnx.wire.skeleton import varint

# What may hold tensors, and in which fields.
_INSIDE: dict[type[Message], tuple[str, ...]] = {
    ModelProto: ("graph", "functions"),
    GraphProto: ("node", "initializer"),
    FunctionProto: ("node",),
    NodeProto: ("attribute",),
    AttributeProto: ("t", "g", "graphs"),
}
_RAW = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A file of `nbytes`: pieces of text, each with its offset, and the offset of the bytes of each tensor, by `id`."""

    nbytes: int
    text: tuple[tuple[int, bytes], ...]
    offsets: Mapping[int, int]


def laid_out(model: ModelProto, room: Mapping[int, int]) -> FileLayout:
    """The file of a model in which the tensors with these `id`s get raw_data of so many bytes."""
    text: list[tuple[int, bytes]] = []
    offsets: dict[int, int] = {}
    run, start, at = list[bytes](), 0, 0
    for piece in _pieces(model, room):
        if isinstance(piece, bytes):
            run.append(piece)
            at += len(piece)
            continue
        text.append((start, b"".join(run)))
        run.clear()
        offsets[piece] = at
        start = at = at + room[piece]
    text.append((start, b"".join(run)))
    return FileLayout(at, tuple(text), offsets)


def _pieces(message: Message, room: Mapping[int, int]) -> Sequence[bytes | int]:
    """A message as text, and the `id` of a tensor where its bytes go."""
    if isinstance(message, TensorProto):
        if id(message) not in room:
            return [message.SerializeToString()]
        header = message.SerializeToString() + varint(_RAW << 3 | 2) + varint(room[id(message)])
        return [header, id(message)]
    if isinstance(message, NodeProto | AttributeProto) and not _holds(message):
        return [message.SerializeToString()]
    inside = _INSIDE[type(message)]
    rest = type(message)()
    found: list[bytes | int] = []
    for field, content in message.ListFields():
        if field.name not in inside:
            if hasattr(content, "MergeFrom"):  # messages and repeated fields
                getattr(rest, field.name).MergeFrom(content)
            elif field.type == field.TYPE_STRING and isinstance(content, bytes):  # text that is not UTF-8
                rest.MergeFromString(varint(field.number << 3 | 2) + varint(len(content)) + content)
            else:
                setattr(rest, field.name, content)
            continue
        for one in [content] if isinstance(content, Message) else content:
            inner = _pieces(one, room)
            length = sum(len(piece) if isinstance(piece, bytes) else room[piece] for piece in inner)
            found += [varint(field.number << 3 | 2), varint(length), *inner]
    return [*found, rest.SerializeToString()]


def _holds(message: NodeProto | AttributeProto) -> bool:
    """Whether there are tensors or graphs in a node or an attribute."""
    if isinstance(message, NodeProto):
        return any(_holds(attribute) for attribute in message.attribute)
    return message.HasField("t") or message.HasField("g") or len(message.graphs) > 0
