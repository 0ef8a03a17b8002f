"""Plans in, a converted model out: branches put in place of nodes, and numbers into their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from onnx import GraphProto, NodeProto, TensorProto, helper

from splitquant.core.error import ErrorFigures
from splitquant.errors import TensorError, tensor_error
from splitquant.onnx.forms.encode import PartPlaces, encode_weight, needs_all_memory
from splitquant.onnx.forms.form import Piece
from splitquant.onnx.graph.functions import function_constants
from splitquant.onnx.graph.operands import MICROSOFT
from splitquant.onnx.graph.opset import least_ir_version, opset_of
from splitquant.onnx.graph.prune import prune
from splitquant.onnx.graph.scopes import Scope, value_of
from splitquant.onnx.plan import NodePlan, PartNames, consumers_of, kept_in_functions, kept_sparse, kept_weights
from splitquant.onnx.rewrite import branches, joined
from splitquant.onnx.wire.destination import Destination
from splitquant.onnx.wire.sink import Place, Sink
from splitquant.onnx.wire.skeleton import LARGEST_FILE
from splitquant.onnx.wire.source import Source, is_stripped
from splitquant.onnx.wire.stored import StoredTensor
from splitquant.report.outcome import Outcome
from splitquant.storage.memory import MemoryBudget

MOST_INLINE_BYTES = LARGEST_FILE - 1  # beyond, weights go to external data


@dataclass(frozen=True, slots=True)
class _Unit:
    """The parts of one weight: written once, read by every node of the same key."""

    plan: NodePlan
    names: tuple[PartNames, ...]
    places: tuple[PartPlaces, ...]


class Assembly:
    """The converted model while it is put together: branches into the graphs, places for tensors, numbers into places.

    The order: `rewire`, `open`, `encode`, `finish`, then `outcomes`.
    """

    def __init__(self, source: Source, scopes: list[Scope], plans: list[NodePlan], sink: Sink) -> None:
        self._source = source
        self._scopes = scopes
        self._plans = plans
        self._sink = sink
        self._taken = _all_names(scopes)
        self._units: dict[tuple[object, ...], _Unit] = {}
        self._new: set[int] = set()
        self._copied: list[tuple[Place, StoredTensor]] = []
        self._readers = consumers_of(scopes)
        self._in_functions = function_constants(source)

    def rewire(self) -> str:  # noqa: C901 - one step after the other over the same tables
        """Put the branches into the graphs, drop what nobody reads then, and give a place to every large tensor.

        Returns:
            A note on the weights that were defaults of inputs, and are constants now ("" where there are none).
        """
        replacement: dict[int, list[NodeProto]] = {}
        opset = opset_of(self._source.proto)
        for plan in self._plans:
            if plan.form is None:
                continue
            if plan.key not in self._units:
                self._units[plan.key] = self._unit(plan)
            nodes = branches(plan, self._units[plan.key].names, self._fresh, opset)
            before = replacement.get(id(plan.node))
            replacement[id(plan.node)] = nodes if before is None else joined(before, nodes, plan.form.operand.slot)
        replaced = {name for plan in self._plans if plan.form and plan.weight for name in plan.weight.names}
        for scope in self._scopes:
            _put_in_place(scope.graph, replacement)
        note = self._fixed_inputs()
        prune(self._scopes, replaced)
        for scope in self._scopes:
            for proto in scope.graph.initializer:
                if id(proto) not in self._new:
                    self._keep(proto, scope.constants.get(proto.name))
            for node in scope.graph.node:
                if node.op_type == "Constant" and (value := value_of(node)) is not None and node.output:
                    self._keep(value, scope.constants.get(node.output[0]))
        for constant in self._in_functions:
            self._keep(constant.proto, constant.tensor)
        model = self._source.proto
        if any(plan.form is not None and plan.form.name == "MatMulNBits" for plan in self._plans) and not any(
            entry.domain == MICROSOFT for entry in model.opset_import
        ):
            model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        model.ir_version = least_ir_version(model)
        return note

    def _fixed_inputs(self) -> str:
        """Take converted weights out of the inputs of their graphs: nobody can give another value for them any more."""
        fixed: list[str] = []
        for owner, names in ((p.weight.owner, p.weight.names) for p in self._plans if p.form and p.weight):
            for value in [value for value in owner.graph.input if value.name in names]:
                owner.graph.input.remove(value)
                fixed.append(value.name)
        return f"no inputs any more, since they are stored in low bits: {', '.join(sorted(fixed))}" if fixed else ""

    def open(self, target: Destination | None) -> str:
        """Open memory or files for the weights, and a note where they move to external data."""
        if target is None:
            self._sink.open_memory()
            return ""
        external, note = self._source.has_external_data, ""
        if not external and (size := self._sink.file_bytes(self._source.proto)) > MOST_INLINE_BYTES:
            external = True
            note = (
                f"the weights are external data in {target.location}: with them, the model would have {size} bytes, "
                f"and an ONNX file ends below {LARGEST_FILE}"
            )
        self._sink.open_files(self._source.proto, target, external=external)
        return note

    def written_bytes(self) -> int:
        """The bytes of the files that `open` would make."""
        inline = self._sink.file_bytes(self._source.proto)
        external = self._source.has_external_data or inline > MOST_INLINE_BYTES
        return self._sink.external_bytes(self._source.proto, "model.onnx.data") if external else inline

    def encode(self, budget: MemoryBudget, advance: Callable[[int], None]) -> Mapping[tuple[object, ...], ErrorFigures]:
        """Write all parts, and copy what is kept."""

        def work(unit: _Unit, budget: MemoryBudget = budget) -> ErrorFigures:
            form = unit.plan.form
            assert form is not None
            tensor, name = form.operand.weight.tensor, unit.plan.weight_name
            try:
                figures = encode_weight(form, unit.places, budget)
            except TensorError as error:
                raise tensor_error(self._source.label, name, error) from None
            advance(tensor.nbytes)
            return figures

        whole = {key: unit for key, unit in self._units.items() if _needs_all_memory(unit, budget)}
        figures = {key: work(unit, replace(budget, threads=1)) for key, unit in whole.items()}
        rest = {key: unit for key, unit in self._units.items() if key not in whole}
        with ThreadPoolExecutor(budget.threads) as pool:
            figures.update(zip(rest, pool.map(work, rest.values()), strict=True))
        for place, tensor in self._copied:
            place.copy_of(tensor)
        return figures

    def finish(self) -> None:
        """Complete files, or bytes in the model."""
        self._sink.finish()

    def outcomes(self, figures: Mapping[tuple[object, ...], ErrorFigures]) -> tuple[Outcome, ...]:
        """What became of every node and every weight, each counted once."""
        counted: set[tuple[int, int]] = set()
        stored: set[tuple[object, ...]] = set()
        found: list[Outcome] = []
        for plan in self._plans:
            weight = None if plan.weight is None else (id(plan.weight.owner), id(plan.weight.tensor))
            key = (weight,) if plan.form is None else plan.key
            found.append(
                _outcome(
                    plan,
                    figures.get(plan.key) if plan.form else None,
                    new_source=weight not in counted,
                    new_stored=key not in stored,
                )
            )
            stored.add(key)
            if weight is not None:
                counted.add(weight)
        seen = {(id(plan.weight.owner), name) for plan in self._plans if plan.weight for name in plan.weight.names}
        rowed = {
            (id(plan.weight.owner), name)
            for plan in self._plans
            if plan.weight and plan.form is None
            for name in plan.weight.names
        }
        found += kept_weights(self._scopes, self._readers, seen, rowed)
        found += kept_in_functions(self._in_functions)
        found += kept_sparse(self._scopes)
        return tuple(found)

    def _keep(self, proto: TensorProto, tensor: StoredTensor | None) -> None:
        if tensor is None or not (is_stripped(proto) or proto.data_location == TensorProto.EXTERNAL):
            return
        self._copied.append((self._sink.place(proto, tensor.nbytes), tensor))

    def _unit(self, plan: NodePlan) -> _Unit:
        form = plan.form
        assert form is not None
        names, places = [], []
        for c in range(form.parts):
            base = self._fresh(f"{plan.weight_name}.part{c}", tuple(piece.suffix for piece in form.pieces))
            made = {piece.suffix: self._tensor(plan.owner, base, piece) for piece in form.pieces}
            named = {suffix: proto.name for suffix, (proto, _) in made.items()}
            names.append(PartNames(base, named.get(".scale", ""), named.get(".zero_point", "")))
            room = {suffix: place for suffix, (_, place) in made.items()}
            places.append(PartPlaces(room[""], room.get(".scale"), room.get(".zero_point")))
        return _Unit(plan, tuple(names), tuple(places))

    def _tensor(self, owner: Scope, base: str, piece: Piece) -> tuple[TensorProto, Place]:
        name = base + piece.suffix
        proto = owner.graph.initializer.add(name=name, data_type=piece.data_type, dims=piece.shape)
        self._new.add(id(proto))
        return proto, self._sink.place(proto, piece.nbytes)

    def _fresh(self, name: str, suffixes: Sequence[str] = ("",)) -> str:
        """A name that, with each of the suffixes, is free; taken from then on."""
        found, number = name, 1
        while not self._taken.isdisjoint(found + suffix for suffix in suffixes):
            number += 1
            found = f"{name}_{number}"
        self._taken.update(found + suffix for suffix in suffixes)
        return found


def _needs_all_memory(unit: _Unit, budget: MemoryBudget) -> bool:
    return unit.plan.form is not None and needs_all_memory(unit.plan.form, budget)


def _put_in_place(graph: GraphProto, replacement: Mapping[int, Sequence[NodeProto]]) -> None:
    """Put branches where their nodes were, in place: other scopes hold graphs that lie inside these nodes."""
    order: dict[int, tuple[int, int]] = {}
    held = list(graph.node)
    for at, node in enumerate(list(held)):
        new = replacement.get(id(node), ())
        order[id(node)] = (at, len(new))
        if not new:
            continue
        node.CopyFrom(new[-1])
        for number, extra in enumerate(new[:-1]):
            added = graph.node.add()
            added.CopyFrom(extra)
            held.append(added)
            order[id(added)] = (at, number)
    graph.node.sort(key=lambda node: order[id(node)])


def _outcome(plan: NodePlan, figures: ErrorFigures | None, *, new_source: bool, new_stored: bool) -> Outcome:
    form, weight = plan.form, plan.weight
    source_bytes = 0 if weight is None else weight.tensor.nbytes
    stored_bytes = source_bytes if form is None else form.stored_bytes
    shared = "" if new_stored or weight is None else "shares its weight with a node before"
    layer = plan.decision.layer
    return Outcome(
        name=plan.label,
        outcome="kept" if form is None else "split" if form.name == "float" else "quantized",
        reason="; ".join(filter(None, (plan.reason, shared))),
        role=layer.role,
        dtype=layer.dtype,
        shape=layer.shape,
        source_bytes=source_bytes if new_source else 0,
        stored_bytes=stored_bytes if new_stored else 0,
        spec=None if form is None else form.spec,
        figures=figures if new_stored else None,
        kind=plan.found.op_type,
        weight=plan.weight_name,
        form="" if form is None else form.name,
        parts=0 if form is None else form.parts,
    )


def _all_names(scopes: Sequence[Scope]) -> set[str]:
    names: set[str] = set()
    for scope in scopes:
        names |= scope.constants.keys() | scope.producers.keys() | scope.inputs
        names |= {node.name for node in scope.graph.node}
        names |= {proto.values.name for proto in scope.graph.sparse_initializer}
    return names
