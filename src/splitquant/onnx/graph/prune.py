"""What nobody reads any more once the weights are in parts: their initializers, the nodes they went through, what is said of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnx import GraphProto

from splitquant.onnx.graph.scopes import Scope

_THROUGH = ("Constant", "Transpose", "Cast", "Identity")


def prune(scopes: Sequence[Scope], replaced: set[str], through: Collection[str] = _THROUGH) -> None:
    """Remove the constants named in `replaced`, and what leads from them, where no node and no output reads them.

    through: the operators that may be what leads from them.
    """
    candidates = set(replaced)
    for scope in scopes:
        for node in scope.graph.node:
            if node.op_type in through and any(name in candidates for name in node.input):
                candidates.update(node.output)
    while True:
        used = {name for scope in scopes for name in _read(scope.graph)}
        removed = sum(_drop(scope.graph, candidates - used, through) for scope in scopes)
        if removed == 0:
            break
    for scope in scopes:
        made = {name for node in scope.graph.node for name in node.output}
        stale = [value for value in scope.graph.value_info if value.name in candidates and value.name not in made]
        for value in stale:
            scope.graph.value_info.remove(value)
        held = {proto.name for proto in scope.graph.initializer} | made
        gone = [a for a in scope.graph.quantization_annotation if a.tensor_name in candidates - held]
        for annotation in gone:
            scope.graph.quantization_annotation.remove(annotation)


def _read(graph: GraphProto) -> list[str]:
    return [name for node in graph.node for name in node.input] + [value.name for value in graph.output]


def _drop(graph: GraphProto, unused: set[str], through: Collection[str]) -> int:
    dead = [
        at
        for at, node in enumerate(graph.node)
        if node.op_type in through and node.output and all(name in unused for name in node.output)
    ]
    for at in reversed(dead):
        del graph.node[at]
    gone = [at for at, proto in enumerate(graph.initializer) if proto.name in unused]
    for at in reversed(gone):
        del graph.initializer[at]
    return len(dead) + len(gone)
