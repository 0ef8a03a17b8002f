"""What planners ask of an ONNX model: what a weight loses by a spec, and what the model takes then."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from splitquant.core.arrays import Matrix
from splitquant.core.rows import to_matrix
from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError, TensorError, tensor_error
from splitquant.format.planes import geometry
from splitquant.onnx.dtypes import converted, numpy_of
from splitquant.onnx.forms.form import Form
from splitquant.onnx.forms.options import OnnxForm
from splitquant.onnx.graph.operands import Operand
from splitquant.onnx.graph.opset import opset_of, raise_opset
from splitquant.onnx.graph.scopes import THROUGH, Scope
from splitquant.onnx.layers import NodeLayer, weight_name
from splitquant.onnx.plan import NodePlan, PartNames, opset_for, planned_form
from splitquant.onnx.rewrite import branches
from splitquant.onnx.wire.sink import ALIGNMENT, LEAST_EXTERNAL
from splitquant.onnx.wire.source import LEAST_DETACHED, Source
from splitquant.onnx.wire.stored import StoredTensor
from splitquant.plan.layers import Layer
from splitquant.plan.measured import Measured, measured_by
from splitquant.plan.plan import Decision, Plan
from splitquant.plan.planner import Pool
from splitquant.plan.sample import sample_of
from splitquant.storage.memory import Buffers, MemoryBudget

_NAME = "_99"  # as long as what a name may need to be new
_HEADER_BYTES = 24  # of a tensor beside its name: type, dimensions, lengths
_SLACK_BYTES = 4096  # opsets, the version converter's own words


@dataclass(frozen=True, slots=True)
class OnnxCosts:
    """The sizes of a model, see `plan.planner.Costs`.

    Args:
        nodes: its layers, by name.
        storage: how weights are stored.
        weights: those of the layers, each once.
        rest: the bytes of all that is neither graph nor weight of a layer.
        graph_bytes: the bytes of the graph without large weights, once it is raised to an opset.
        external: whether weights are external data, where each begins at a page.
        opset: of the model.
        wide: names of the layers whose scales float16 cannot hold.
    """

    nodes: Mapping[str, NodeLayer]
    storage: OnnxForm
    weights: Sequence[SharedWeight]
    rest: int
    graph_bytes: Callable[[int], int]
    external: bool
    opset: int
    wide: Collection[str] = ()

    @classmethod
    def of(cls, source: Source, scopes: Sequence[Scope], layers: Sequence[NodeLayer], storage: OnnxForm) -> OnnxCosts:
        """The costs of an opened model."""
        nodes = {found.layer.name: found for found in layers}
        external = source.has_external_data
        constants = {id(t): t for scope in scopes for t in scope.constants.values()}
        outside = sum(
            _on_pages(t.nbytes) if external else t.nbytes for t in constants.values() if _is_stripped(source, t)
        )
        weights = shared_weights(scopes, layers)
        rest = outside - sum(weight.nbytes for weight in weights) + _SLACK_BYTES

        @cache
        def graph_bytes(opset: int) -> int:
            proto = ModelProto()
            proto.CopyFrom(source.proto)
            return int(raise_opset(proto, opset, source.label)[0].ByteSize())

        return cls(nodes, storage, weights, rest, graph_bytes, external, opset_of(source.proto))

    def price(self, layer: Layer, spec: QuantSpec) -> int:
        """The bytes of all parts, in the form that the spec means here."""
        form = self._form(layer, spec)
        return layer.nbytes if form is None else form.stored_bytes

    def possible(self, layer: Layer, spec: QuantSpec) -> bool:
        """Whether a layer can be stored by this very spec."""
        try:
            self.storage.checked_for(layer, spec)
        except SpecError:
            return False
        form = self._form(layer, spec)
        return form is not None and form.spec == spec

    def beside(self, decision: Decision) -> int:
        """The nodes and names that a converted layer needs, at most, and its weight where what is no layer reads it too."""
        elsewhere = (
            decision.spec is not None and decision.layer.tied_to is None and decision.name in self._read_elsewhere
        )
        return self._words(decision) + (decision.layer.nbytes if elsewhere else 0)

    def _words(self, decision: Decision) -> int:
        found = self.nodes[decision.name]
        if decision.spec is None or found.operand is None:
            return 0
        form = self._form(found.layer, decision.spec)
        if form is None:
            return 0
        plan = NodePlan(found, decision, form, "")
        parts = [_part_names(plan, c) for c in range(form.parts)]
        nodes = branches(plan, parts, lambda name: name + _NAME, self.opset)
        words = sum(_message_bytes(node) for node in nodes)
        if decision.layer.tied_to is not None:
            return words
        pieces = [piece for piece in form.pieces for _ in parts]
        words += sum(_HEADER_BYTES + len(plan.weight_name) + len(piece.suffix) + 2 * len(_NAME) for piece in pieces)
        if self.external:
            words += sum(_on_pages(piece.nbytes) - piece.nbytes + len(_LOCATION) for piece in pieces)
        return words

    def total(self, plan: Plan) -> int:
        """The bytes of the model file and of its external data, at most."""
        forms = {d.name: form for d in plan.quantized if (form := self._form(d.layer, d.spec)) is not None}
        opset = max(map(opset_for, forms.values()), default=0)
        parts = sum(d.stored_bytes + self._words(d) for d in plan.quantized if d.name in forms)
        floats = sum(w.nbytes for w in self.weights if w.read_elsewhere or not all(name in forms for name in w.layers))
        return self.rest + self.graph_bytes(opset) + parts + floats

    @property
    def _read_elsewhere(self) -> frozenset[str]:
        return frozenset(name for weight in self.weights if weight.read_elsewhere for name in weight.layers)

    def _form(self, layer: Layer, spec: QuantSpec | None) -> Form | None:
        if spec is None:
            return None
        return planned_form(self.nodes[layer.name], spec, self.storage, wide=layer.owner in self.wide)[0]


_LOCATION = "location, offset and length of a tensor in external data, as text" * 2


def _part_names(plan: NodePlan, part: int) -> PartNames:
    base = f"{plan.weight_name}.part{part}{_NAME}"
    return PartNames(base, f"{base}.scale", f"{base}.zero_point")


def _message_bytes(node: NodeProto) -> int:
    return int(node.ByteSize()) + 6


def _on_pages(nbytes: int) -> int:
    """What a tensor takes in external data."""
    return nbytes if nbytes < LEAST_EXTERNAL else -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class SharedWeight:
    """A weight of layers.

    Args:
        nbytes: what it takes.
        layers: the names of all layers that read it.
        read_elsewhere: whether it is read by what is no layer too, or returned: it stays when they are converted.
    """

    nbytes: int
    layers: tuple[str, ...]
    read_elsewhere: bool


def shared_weights(scopes: Sequence[Scope], layers: Sequence[NodeLayer]) -> tuple[SharedWeight, ...]:
    """The weights of the layers, each once: in a model a table may be a head too, and graphs may share a weight."""
    readers: dict[str, list[NodeProto]] = {}
    returned: set[str] = set()
    for scope in scopes:
        returned |= {value.name for value in scope.graph.output}
        for node in scope.graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
    sharing: dict[int, list[NodeLayer]] = {}
    for found in layers:
        if found.operand is not None:
            sharing.setdefault(id(found.operand.weight.tensor), []).append(found)

    def weight(group: list[NodeLayer]) -> SharedWeight:
        names, nodes = _read_through([o.weight.names for f in group if (o := f.operand) is not None], readers)
        elsewhere = bool(names & returned) or nodes != {id(found.node) for found in group}
        return SharedWeight(group[0].layer.nbytes, tuple(found.layer.name for found in group), elsewhere)

    return tuple(weight(group) for group in sharing.values())


def _read_through(
    first: Iterable[Iterable[str]], readers: Mapping[str, Sequence[NodeProto]]
) -> tuple[set[str], set[int]]:
    """All names of a constant, and the nodes that read it, behind those that only pass it on."""
    waiting, names, nodes = list(chain.from_iterable(first)), set[str](), set[int]()
    while waiting:
        name = waiting.pop()
        if name in names:
            continue
        names.add(name)
        for node in readers.get(name, ()):
            if node.op_type in THROUGH:
                waiting += node.output
            else:
                nodes.add(id(node))
    return names, nodes


def measure_nodes(
    layers: Sequence[NodeLayer],
    budget: MemoryBudget,
    advance: Callable[[int], None],
    asked: Sequence[tuple[Layer, Pool]],
) -> list[Measured]:
    """What the weights of some nodes lose by each of their candidates.

    Args:
        layers: of the model.
        budget: of memory and threads.
        advance: told the bytes of weights that are done, from any thread.
        asked: the layers, and the candidates of each.

    Raises:
        TensorError: with the weight's name, for NaN and infinity.
    """
    nodes = {found.layer.name: found for found in layers}
    buffers = Buffers()

    def measure(one: tuple[Layer, Pool]) -> Measured:
        layer, specs = one
        found = nodes[layer.name]
        assert found.operand is not None
        try:
            matrices = [sampled_rows(found.operand, budget, buffers)]
            measured = measured_by(layer, specs, matrices, buffers.get)
        except TensorError as error:
            weight = found.operand.weight
            raise tensor_error(found.scope.label, weight_name(weight, found.label), error) from None
        advance(layer.nbytes)
        return measured

    with ThreadPoolExecutor(budget.threads) as pool:
        return list(pool.map(measure, asked))


def sampled_rows(operand: Operand, budget: MemoryBudget, buffers: Buffers) -> Matrix:
    """The output channels of a weight that are measured, `[rows, cols]`; read in spans that fit the memory."""
    weight, kinds = operand.weight, operand.weight.kinds
    assert kinds is not None
    g = geometry(weight.shape, operand.axis)
    rows = sample_of(g)[0].rows
    item = max(numpy_of(kind).itemsize for kind in kinds)
    step = max(1, budget.thread_bytes // (3 * item * max(1, g.cols)))
    found = []
    for start in range(0, g.rows, step):
        stop = min(start + step, g.rows)
        chosen = rows[(rows >= start) & (rows < stop)]
        if len(chosen):
            found.append(to_matrix(_taken(operand, start, stop, chosen - start, buffers), operand.axis))
    return np.concatenate(found)


def _taken(operand: Operand, start: int, stop: int, rows: NDArray[np.int64], buffers: Buffers) -> NDArray[Any]:
    """Some of the output channels from `start` to `stop`, in the axes in which the node sees the weight."""
    weight = operand.weight
    assert weight.kinds is not None
    array = weight.tensor.slab(numpy_of(weight.kinds[0]), weight.perm[operand.axis], start, stop, buffers)
    array = np.take(array, rows, axis=weight.perm[operand.axis])
    for kind in weight.kinds[1:]:
        array = converted(array, kind)
    return array.transpose(weight.perm)


def _is_stripped(source: Source, tensor: StoredTensor) -> bool:
    """Whether the bytes of a constant are outside of the graph in memory."""
    return tensor.file is not None or (source.tensors.get(tensor.name) is tensor and tensor.nbytes >= LEAST_DETACHED)
