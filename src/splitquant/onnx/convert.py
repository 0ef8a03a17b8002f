"""The two jobs: an ONNX model in, a split float model or a low-bit model out. Plan from the graph, then apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from splitquant.checkpoint.convert import Resources
from splitquant.checkpoint.windows import DEFAULT_MAX_MEMORY, MemoryBudget, parse_bytes
from splitquant.checkpoint.workplace import check_room
from splitquant.core.error import ErrorFigures
from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.errors import TensorError
from splitquant.onnx.dtypes import name_of
from splitquant.onnx.encode import PartPlaces, encode_weight
from splitquant.onnx.forms import Piece
from splitquant.onnx.opset import inline_functions, least_ir_version, opset_of, raise_opset
from splitquant.onnx.options import DEFAULT_SPEC, Format, Options
from splitquant.onnx.plan import NodePlan, kept_sparse, kept_weights, needed_opset, plan_nodes
from splitquant.onnx.prune import prune
from splitquant.onnx.report import NodeOutcome, OnnxReport
from splitquant.onnx.rewrite import MICROSOFT, PartNames, branches
from splitquant.onnx.scopes import Scope, open_scopes, value_of
from splitquant.onnx.sink import Place, Sink
from splitquant.onnx.source import Source, is_stripped
from splitquant.onnx.stored import StoredTensor
from splitquant.onnx.target import Target
from splitquant.plan.plan import embedding_spec

Model = ModelProto | str | Path
MOST_INLINE_BYTES = 1 << 30  # of weights; beyond, they go to external data
_SMALL_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted model. model: its graph, with the weights in it or pointing to external data beside the written file."""

    model: ModelProto
    report: OnnxReport


def split(
    model: Model,
    out_path: str | Path | None = None,
    spec: QuantSpec = DEFAULT_SPEC,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int = 0,
    force: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Converted:
    """Split each layer of an ONNX model into k float layers, whose sum is the same function.

    spec: its clusters, strategy and granularity say where values are cut; the parts of a weight sum to it exactly.
    include, exclude: glob patterns of node or weight names. max_memory: bound on the peak memory of the process.
    advance: told the bytes of weights that are done, from any thread.
    Raises SpecError, SourceError, TensorError, DestinationError; on an error nothing is written.
    """
    options = Options(spec, None, "float", tuple(include), tuple(exclude))
    return convert(model, out_path, options, _resources(max_memory, threads, force), advance)


def quantize(
    model: Model,
    out_path: str | Path | None = None,
    spec: QuantSpec = DEFAULT_SPEC,
    *,
    format: Format = "qdq",  # noqa: A002 - what the command line and other quantizers call it
    embeddings: QuantSpec | int | str | None = EMBEDDING,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    block_size: int = 128,
    accuracy_level: int = 4,
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int = 0,
    force: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Converted:
    """Quantize an ONNX model: each layer becomes k branches with low-bit integer weights (one for `clusters=1`).

    format: `qdq` (DequantizeLinear before the layer: standard operators only) or `matmulnbits` (ONNX Runtime's operator
        for MatMul and Gemm, QDQ for convolutions). embeddings: of tables that Gather reads, as in `splitquant.quantize`.
    The other arguments are those of `split` and of `Options`. Raises SpecError, SourceError, TensorError,
    DestinationError; on an error nothing is written.
    """
    options = Options(
        spec, embedding_spec(embeddings), format, tuple(include), tuple(exclude), block_size, accuracy_level
    )
    return convert(model, out_path, options, _resources(max_memory, threads, force), advance)


def convert(
    model: Model,
    out_path: str | Path | None,
    options: Options,
    resources: Resources,
    advance: Callable[[int], None] = lambda _: None,
) -> Converted:
    """`split` or `quantize`, by options."""
    with ExitStack() as stack:
        source = stack.enter_context(Source(model))
        notes = [_take_out_of_inputs(source.proto.graph)]
        source.proto, note = inline_functions(source.proto, source.label)
        notes.append(note)
        scopes = open_scopes(source)
        plans = plan_nodes(scopes, options)
        needed = needed_opset(plans)
        source.proto, note = raise_opset(source.proto, needed, source.label)
        if note:
            notes.append(note)
            scopes = open_scopes(source)
            plans = plan_nodes(scopes, options)
        target = None
        if out_path is not None:
            target = stack.enter_context(Target(Path(out_path), source.paths, force=resources.force))
        job = _Job(source, scopes, plans, target, stack)
        outcomes = job.apply(resources.budget(len(plans)), advance)
        graph = job.finish()
        if target is not None:
            target.publish(graph, with_data=job.external)
    return Converted(graph, OnnxReport(outcomes, tuple(filter(None, notes))))


@dataclass(frozen=True, slots=True)
class _Unit:
    """The parts of one weight: written once, read by every node of the same key."""

    plan: NodePlan
    names: tuple[PartNames, ...]
    places: tuple[PartPlaces, ...]


class _Job:
    def __init__(
        self, source: Source, scopes: list[Scope], plans: list[NodePlan], target: Target | None, stack: ExitStack
    ) -> None:
        self._source = source
        self._scopes = scopes
        self._plans = plans
        self._target = target
        self._taken = _all_names(scopes)
        self._units: dict[tuple[object, ...], _Unit] = {}
        self._new: list[tuple[TensorProto, Place]] = []
        planned = sum({plan.key: plan.form.stored_bytes for plan in plans if plan.form}.values())
        total = planned + sum(tensor.nbytes for tensor in source.tensors.values())
        self.external = target is not None and (source.has_external_data or total > MOST_INLINE_BYTES)
        if target is not None:
            check_room(target.path, total + _SMALL_BYTES)
        self._sink = stack.enter_context(Sink(target.growing_data if target is not None and self.external else None))

    def apply(self, budget: MemoryBudget, advance: Callable[[int], None]) -> tuple[NodeOutcome, ...]:
        """Put the branches into the graphs, then write all weights."""
        first: dict[tuple[object, ...], NodePlan] = {}
        replacement: dict[int, list[NodeProto]] = {}
        opset = opset_of(self._source.proto)
        for plan in self._plans:
            if plan.form is None:
                continue
            if plan.key not in self._units:
                first[plan.key] = plan
                self._units[plan.key] = self._unit(plan)
            replacement[id(plan.node)] = branches(plan, self._units[plan.key].names, self._fresh, opset)
        done = self._encode(budget, advance)
        outcomes = [
            _outcome(plan, done.get(plan.key) if plan.form else None, plan.form is None or first[plan.key] is plan)
            for plan in self._plans
        ]
        weights = [plan.weight for plan in self._plans if plan.weight is not None]
        seen = {(id(weight.owner), name) for weight in weights for name in weight.names}
        outcomes += [*kept_weights(self._scopes, seen), *kept_sparse(self._scopes)]
        self._replace(replacement)
        return tuple(outcomes)

    def finish(self) -> ModelProto:
        """Copy what is kept, point every tensor to its bytes, and bring versions up to date."""
        location = "" if self._target is None else self._target.location
        new = {id(proto) for proto, _ in self._new}
        for scope in self._scopes:
            for proto in scope.graph.initializer:
                if id(proto) not in new:
                    self._keep(proto, scope.constants.get(proto.name), location)
            for node in scope.graph.node:
                if node.op_type == "Constant" and (value := value_of(node)) is not None and node.output:
                    self._keep(value, scope.constants.get(node.output[0]), location)
        for proto, place in self._new:
            place.describe(proto, location)
        self._sink.close()
        model = self._source.proto
        if any(plan.form is not None and plan.form.name == "MatMulNBits" for plan in self._plans) and not any(
            entry.domain == MICROSOFT for entry in model.opset_import
        ):
            model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        model.ir_version = least_ir_version(model)
        return model

    def _keep(self, proto: TensorProto, tensor: StoredTensor | None, location: str) -> None:
        if tensor is None or not (is_stripped(proto) or proto.data_location == TensorProto.EXTERNAL):
            return
        place = self._sink.place(tensor.nbytes)
        place.copy_of(tensor)
        place.describe(proto, location)

    def _unit(self, plan: NodePlan) -> _Unit:
        form = plan.form
        assert form is not None
        names, places = [], []
        for c in range(form.parts):
            base = self._fresh(f"{_base_name(plan)}.part{c}", tuple(piece.suffix for piece in form.pieces))
            made = {piece.suffix: self._tensor(plan.owner, base, piece) for piece in form.pieces}
            named = {suffix: proto.name for suffix, (proto, _) in made.items()}
            names.append(PartNames(base, named.get(".scale", ""), named.get(".zero_point", "")))
            room = {suffix: place for suffix, (_, place) in made.items()}
            places.append(PartPlaces(room[""], room.get(".scale"), room.get(".zero_point")))
        return _Unit(plan, tuple(names), tuple(places))

    def _tensor(self, owner: Scope, base: str, piece: Piece) -> tuple[TensorProto, Place]:
        name = base + piece.suffix
        proto = owner.graph.initializer.add(name=name, data_type=piece.data_type, dims=piece.shape)
        place = self._sink.place(piece.nbytes)
        self._new.append((proto, place))
        return proto, place

    def _fresh(self, name: str, suffixes: Sequence[str] = ("",)) -> str:
        """A name that, with each of the suffixes, is free; taken from then on."""
        found, number = name, 1
        while not self._taken.isdisjoint(found + suffix for suffix in suffixes):
            number += 1
            found = f"{name}_{number}"
        self._taken.update(found + suffix for suffix in suffixes)
        return found

    def _encode(
        self, budget: MemoryBudget, advance: Callable[[int], None]
    ) -> Mapping[tuple[object, ...], ErrorFigures]:
        def work(unit: _Unit) -> ErrorFigures:
            form = unit.plan.form
            assert form is not None
            tensor, name = form.layer.weight.tensor, _base_name(unit.plan)
            try:
                figures = encode_weight(form, unit.places, budget)
            except TensorError as error:
                raise TensorError(
                    f"{self._source.label}: tensor {name!r} {error}; repair the model, or keep this tensor as it is "
                    f"with --exclude {name!r}"
                ) from None
            advance(tensor.nbytes)
            return figures

        with ThreadPoolExecutor(budget.threads) as pool:
            figures = list(pool.map(work, self._units.values()))
        return dict(zip(self._units, figures, strict=True))

    def _replace(self, replacement: dict[int, list[NodeProto]]) -> None:
        replaced = {name for plan in self._plans if plan.form and plan.weight for name in plan.weight.names}
        for scope in self._scopes:
            _put_in_place(scope.graph, replacement)
        prune(self._scopes, replaced)


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


def _base_name(plan: NodePlan) -> str:
    assert plan.weight is not None
    return plan.weight.tensor.name or min(plan.weight.names, default=plan.label)


def _outcome(plan: NodePlan, figures: ErrorFigures | None, first: bool) -> NodeOutcome:
    form, weight = plan.form, plan.weight
    source_bytes = 0 if weight is None else weight.tensor.nbytes
    return NodeOutcome(
        node=plan.label,
        op_type=plan.node.op_type,
        weight="" if weight is None else _base_name(plan),
        outcome="kept" if form is None else "split" if form.name == "float" else "quantized",
        reason=plan.reason if first else "; ".join(filter(None, (plan.reason, "shares its weight with a node before"))),
        form="" if form is None else form.name,
        parts=0 if form is None else form.parts,
        dtype="" if weight is None else name_of(weight.tensor.data_type),
        shape=() if weight is None else weight.shape,
        source_bytes=source_bytes if first else 0,
        stored_bytes=(source_bytes if form is None else form.stored_bytes) if first else 0,
        spec=None if form is None else form.spec,
        figures=figures,
    )


def _take_out_of_inputs(graph: GraphProto) -> str:
    """Old exporters list initializers among the inputs too: they are constants, and no caller gives them."""
    constants = {proto.name for proto in graph.initializer}
    listed = [value for value in graph.input if value.name in constants]
    for value in listed:
        graph.input.remove(value)
    return (
        f"{len(listed)} initializers were listed among the graph inputs too, and were taken out of these"
        if listed
        else ""
    )


def _all_names(scopes: Sequence[Scope]) -> set[str]:
    names: set[str] = set()
    for scope in scopes:
        names |= scope.constants.keys() | scope.producers.keys() | scope.inputs
        names |= {node.name for node in scope.graph.node}
        names |= {proto.values.name for proto in scope.graph.sparse_initializer}
    return names


def _resources(max_memory: int | str, threads: int, force: bool) -> Resources:
    return Resources(parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory, threads, force)
