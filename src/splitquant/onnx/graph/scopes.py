"""Graphs within graphs: which constant a name stands for, wherever it is used.

A weight may be an initializer, a Constant node, or lie behind Transpose, Cast and Identity nodes; a subgraph (of If,
Loop, Scan) sees the names of the graphs around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from splitquant.core.floats import Kind
from splitquant.errors import SourceError
from splitquant.onnx.dtypes import KINDS
from splitquant.onnx.wire.source import Source
from splitquant.onnx.wire.stored import StoredTensor

STANDARD = ("", "ai.onnx")
_LARGEST_DEPTH = 64
THROUGH = ("Transpose", "Cast", "Identity")


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant as a node sees it: a stored tensor, the kinds it is cast through, and the order of its axes.

    perm: axis i here is axis `perm[i]` of the stored tensor. owner: the graph in which its bytes are.
    """

    tensor: StoredTensor
    owner: Scope
    perm: tuple[int, ...]
    casts: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as the node sees it."""
        return tuple(self.tensor.shape[axis] for axis in self.perm)

    @property
    def names(self) -> set[str]:
        """Under which names its owner knows it (a Constant node's is known by the node's output)."""
        return {name for name, tensor in self.owner.constants.items() if tensor is self.tensor}

    @property
    def data_type(self) -> int:
        """Its element type as the node sees it."""
        return self.casts[-1] if self.casts else self.tensor.data_type

    @property
    def kinds(self) -> tuple[Kind, ...] | None:
        """The float kinds it goes through, the stored one first; None where one of them cannot be split."""
        types = (self.tensor.data_type, *self.casts)
        return tuple(KINDS[data_type] for data_type in types) if all(one in KINDS for one in types) else None


@dataclass(slots=True, eq=False)
class Scope:
    """A graph with the constants and producers of its names, and the scope around it."""

    graph: GraphProto
    parent: Scope | None
    label: str
    constants: dict[str, StoredTensor] = field(default_factory=dict)
    producers: dict[str, NodeProto] = field(default_factory=dict)
    inputs: frozenset[str] = frozenset()

    def constant(self, name: str) -> Constant | None:
        """The constant that a name stands for here, or None."""
        scope, way = self, list[tuple[NodeProto, Scope]]()
        while name not in scope.constants:
            node = scope.producers.get(name)
            if node is not None:
                if node.domain not in STANDARD or node.op_type not in THROUGH or len(node.input) != 1:
                    return None
                way.append((node, scope))
                name = node.input[0]
            elif name in scope.inputs or scope.parent is None:
                return None
            else:
                scope = scope.parent
        tensor = scope.constants[name]
        found = Constant(tensor, scope, tuple(range(len(tensor.shape))))
        for node, inner in reversed(way):
            found = _through(node, inner, found)
        return found


def open_scopes(source: Source) -> list[Scope]:
    """All graphs of a model, the main one first; SourceError for cycles, and for names made twice or never."""
    found: list[Scope] = []
    _open(source, source.proto.graph, None, source.tensors, found, set(), 0)
    return found


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in the attributes of a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def value_of(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node, where it is one."""
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            tensor: TensorProto = attribute.t
            return tensor
    return None


def _open(  # noqa: C901, PLR0912, PLR0913, PLR0917 - one walk, which calls itself for inner graphs
    source: Source,
    graph: GraphProto,
    parent: Scope | None,
    tensors: Mapping[str, StoredTensor],
    found: list[Scope],
    around: set[str],
    depth: int,
) -> None:
    label = f"{source.label}: graph {graph.name!r}"
    if depth > _LARGEST_DEPTH:
        raise SourceError(f"{label} is nested deeper than {_LARGEST_DEPTH} graphs; export the model again")
    scope = Scope(graph, parent, label)
    found.append(scope)
    for proto in graph.initializer:
        if proto.name in scope.constants:
            raise SourceError(f"{label}: tensor {proto.name!r} is there twice; export the model again")
        known = tensors.get(proto.name)  # None: in a subgraph, or made by the version converter
        scope.constants[proto.name] = known or source.stored(proto, f"{label}: tensor {proto.name!r}")
    sparse = {proto.values.name for proto in graph.sparse_initializer}
    scope.inputs = frozenset(value.name for value in graph.input) - scope.constants.keys()
    names = around | scope.inputs | scope.constants.keys() | sparse
    made = set(scope.constants) | scope.inputs
    for position, node in enumerate(graph.node):
        called = f"{label}: node {node.name or position!r} ({node.op_type})"
        for name in node.input:
            if name and name not in names:
                raise SourceError(
                    f"{called} reads {name!r}, which nothing before it makes: the graph has a cycle, or its nodes are not "
                    "in order; export the model again"
                )
        for inner in subgraphs(node):
            _open(source, inner, scope, {}, found, names, depth + 1)
        for name in node.output:
            if name and name in made:
                raise SourceError(f"{called} makes {name!r}, which is there already; export the model again")
            if name:
                made.add(name)
                names.add(name)
                scope.producers[name] = node
        if node.op_type == "Constant" and node.domain in STANDARD and len(node.output) == 1:
            value = value_of(node)
            if value is not None:
                scope.constants[node.output[0]] = source.stored(value, f"{label}: the Constant {node.output[0]!r}")
    for value in graph.output:
        if value.name not in names:
            raise SourceError(f"{label} returns {value.name!r}, which nothing makes; export the model again")


def _through(node: NodeProto, scope: Scope, inner: Constant) -> Constant:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    perm, casts = inner.perm, inner.casts
    if node.op_type == "Transpose":
        order = list(attributes["perm"].ints) if "perm" in attributes else list(range(len(perm)))[::-1]
        if sorted(order) != list(range(len(perm))):
            raise SourceError(
                f"{scope.label}: node {node.name!r} (Transpose) has the perm {order} for a tensor with {len(perm)} axes; "
                "export the model again"
            )
        perm = tuple(perm[axis] for axis in order)
    elif node.op_type == "Cast":
        casts = (*casts, attributes["to"].i if "to" in attributes else 0)
    return Constant(inner.tensor, inner.owner, perm, casts)
