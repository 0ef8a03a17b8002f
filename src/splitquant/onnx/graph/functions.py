"""The constants of local functions that stay functions, since the inliner cannot put them in place of their calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from splitquant.onnx.graph.scopes import STANDARD, subgraphs, value_of
from splitquant.onnx.wire.source import Source
from splitquant.onnx.wire.stored import StoredTensor


@dataclass(frozen=True, slots=True, eq=False)
class FunctionConstant:
    """A constant inside a local function."""

    function: str
    name: str
    proto: TensorProto
    tensor: StoredTensor


def function_constants(source: Source) -> tuple[FunctionConstant, ...]:
    """All constants of the local functions of a model."""
    return tuple(
        FunctionConstant(
            function.name,
            name,
            proto,
            source.stored(proto, f"{source.label}: function {function.name!r}: the constant {name!r}"),
        )
        for function in source.proto.functions
        for name, proto in _constants(function.node)
    )


def _constants(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, TensorProto]]:
    for node in nodes:
        value = value_of(node) if node.op_type == "Constant" and node.domain in STANDARD else None
        if value is not None:
            yield node.output[0] if node.output else value.name, value
        for graph in subgraphs(node):
            yield from ((proto.name, proto) for proto in graph.initializer)
            yield from _constants(graph.node)
