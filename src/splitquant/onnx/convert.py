"""The two jobs: an ONNX model in, a split float model or a low-bit model out. Plan from the graph, then apply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from splitquant.core.error import NO_ERROR, ErrorFigures
from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.errors import SourceError, TensorError, tensor_error
from splitquant.onnx.dtypes import name_of
from splitquant.onnx.encode import PartPlaces, encode_weight, needs_all_memory
from splitquant.onnx.forms import HalfScaleError, Piece
from splitquant.onnx.functions import function_constants
from splitquant.onnx.opset import inline_functions, least_ir_version, opset_of, raise_opset
from splitquant.onnx.options import BLOCK_SIZE, DEFAULT_SPEC, INT8_ACTIVATIONS, SPLIT_SPEC, Activations, Format, Options
from splitquant.onnx.plan import (
    NodePlan,
    kept_in_functions,
    kept_sparse,
    kept_weights,
    needed_opset,
    plan_nodes,
    readers_of,
)
from splitquant.onnx.prune import prune
from splitquant.onnx.report import NodeOutcome, OnnxReport
from splitquant.onnx.rewrite import MICROSOFT, PartNames, branches
from splitquant.onnx.scopes import Scope, open_scopes, value_of
from splitquant.onnx.sink import Place, Sink
from splitquant.onnx.source import Source, is_stripped
from splitquant.onnx.stored import StoredTensor
from splitquant.onnx.target import Target
from splitquant.onnx.wire import LARGEST_FILE
from splitquant.plan.plan import embedding_spec
from splitquant.storage.memory import DEFAULT_MAX_MEMORY, MemoryBudget
from splitquant.storage.resources import Resources

Model = ModelProto | str | Path
MOST_INLINE_BYTES = LARGEST_FILE - 1  # beyond, weights go to external data


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted model and the report on it. path: where it was written; None where it is in memory."""

    report: OnnxReport
    path: Path | None
    held: ModelProto | None

    @property
    def model(self) -> ModelProto:
        """The graph, with the weights in it or pointing to external data beside `path`; read from there when asked for."""
        if self.held is not None:
            return self.held
        assert self.path is not None
        return onnx.load(self.path, load_external_data=False)


def split(
    model: Model,
    out_path: str | Path | None = None,
    spec: QuantSpec = SPLIT_SPEC,
    *,
    full_range: bool = False,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int = 0,
    force: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Converted:
    """Split each layer of an ONNX model into k float layers, whose sum is the same function.

    spec: its clusters, strategy and granularity say where values are cut; the parts of a weight sum to it exactly (residual
        ones in 16 bits within one rounding). For `residual`, bits and symmetric say on which grid the first parts lie.
    full_range: that grid is symmetric and uses all codes, see `Options`.
    include, exclude: names or glob patterns of nodes or weights. max_memory: bound on the peak memory of the process.
    advance: told the bytes of weights that are done, from any thread.
    Raises SpecError, SourceError, TensorError, DestinationError; on an error nothing is written.
    """
    options = Options(spec, None, "float", _patterns(include), _patterns(exclude), full_range=full_range)
    return convert(model, out_path, options, Resources.of(max_memory, threads, force=force), advance)


def quantize(
    model: Model,
    out_path: str | Path | None = None,
    spec: QuantSpec = DEFAULT_SPEC,
    *,
    format: Format = "qdq",  # noqa: A002 - what the command line and other quantizers call it
    embeddings: QuantSpec | int | str | None = EMBEDDING,
    include: Sequence[str] | str = (),
    exclude: Sequence[str] | str = (),
    block_size: int = BLOCK_SIZE,
    accuracy_level: int = INT8_ACTIVATIONS,
    activations: Activations | None = None,
    max_memory: int | str = DEFAULT_MAX_MEMORY,
    threads: int = 0,
    force: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Converted:
    """Quantize an ONNX model: each layer becomes k branches with low-bit integer weights (one for `clusters=1`).

    spec: the default is what `splitquant.plan.targets.spec_for("linear-asym")` chooses; others must be parallel.
    format: `qdq` (DequantizeLinear before the layer: standard operators only) or `matmulnbits` (ONNX Runtime's operator
        for MatMul and Gemm, QDQ for convolutions). embeddings: of tables that Gather reads, as in `splitquant.quantize`.
    The other arguments are those of `split` and of `Options`. Raises SpecError, SourceError, TensorError,
    DestinationError; on an error nothing is written.
    """
    options = Options(
        spec,
        embedding_spec(embeddings),
        format,
        _patterns(include),
        _patterns(exclude),
        block_size,
        accuracy_level,
        activations=activations,
    )
    return convert(model, out_path, options, Resources.of(max_memory, threads, force=force), advance)


def convert(
    model: Model,
    out_path: str | Path | None,
    options: Options,
    resources: Resources,
    advance: Callable[[int], None] = lambda _: None,
) -> Converted:
    """`split` or `quantize`, by options."""
    wide: frozenset[str] = frozenset()
    while True:
        try:
            return _convert(model, out_path, options, resources, advance, wide)
        except _WiderScales as found:
            wide |= found.names


class _WiderScales(Exception):  # noqa: N818 - no error: the plan is made anew, with float32 scales for these weights
    def __init__(self, names: frozenset[str]) -> None:
        self.names = names


def _convert(
    model: Model,
    out_path: str | Path | None,
    options: Options,
    resources: Resources,
    advance: Callable[[int], None],
    wide: frozenset[str],
) -> Converted:
    with ExitStack() as stack:
        source = stack.enter_context(Source(model))
        notes = [_take_out_of_inputs(source.proto.graph)]
        source.proto, note = inline_functions(source.proto, source.label)
        notes.append(note)
        scopes = open_scopes(source)
        plans = plan_nodes(scopes, options, wide)
        source.proto, note = raise_opset(source.proto, needed_opset(plans), source.label)
        if note:
            notes.append(note)
            scopes = open_scopes(source)
            plans = plan_nodes(scopes, options, wide)
        budget = resources.budget(len(plans))
        job = _Job(source, scopes, plans, stack.enter_context(Sink()))
        target = None
        if out_path is not None:
            if all(plan.form is None for plan in plans):
                raise SourceError(_nothing_to_do(source.label, plans))
            target = stack.enter_context(Target(Path(out_path), source.paths, force=resources.force))
        job.rewire()
        notes.append(job.open(target))
        figures = job.encode(budget, advance)
        job.finish()
        if target is not None:
            target.publish()
        report = OnnxReport(job.outcomes(figures), tuple(filter(None, notes)))
    return Converted(report, None if target is None else target.path, source.proto if target is None else None)


def _nothing_to_do(label: str, plans: Sequence[NodePlan]) -> str:
    reasons = Counter(plan.reason for plan in plans).most_common(3)
    found = (
        "; ".join(f"{count} x {reason}" for reason, count in reasons)
        or "no MatMul, Gemm, Conv, ConvTranspose or Gather"
    )
    return f"{label}: holds nothing to convert ({found}), and nothing was written; use the model as it is"


@dataclass(frozen=True, slots=True)
class _Unit:
    """The parts of one weight: written once, read by every node of the same key."""

    plan: NodePlan
    names: tuple[PartNames, ...]
    places: tuple[PartPlaces, ...]


class _Job:
    def __init__(self, source: Source, scopes: list[Scope], plans: list[NodePlan], sink: Sink) -> None:
        self._source = source
        self._scopes = scopes
        self._plans = plans
        self._sink = sink
        self._taken = _all_names(scopes)
        self._units: dict[tuple[object, ...], _Unit] = {}
        self._new: set[int] = set()
        self._copied: list[tuple[Place, StoredTensor]] = []
        self._readers = readers_of(scopes)
        self._in_functions = function_constants(source)

    def rewire(self) -> None:
        """Put the branches into the graphs, drop what nobody reads then, and give a place to every large tensor."""
        replacement: dict[int, list[NodeProto]] = {}
        opset = opset_of(self._source.proto)
        for plan in self._plans:
            if plan.form is None:
                continue
            if plan.key not in self._units:
                self._units[plan.key] = self._unit(plan)
            replacement[id(plan.node)] = branches(plan, self._units[plan.key].names, self._fresh, opset)
        replaced = {name for plan in self._plans if plan.form and plan.weight for name in plan.weight.names}
        for scope in self._scopes:
            _put_in_place(scope.graph, replacement)
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

    def open(self, target: Target | None) -> str:
        """Open memory or files for the weights, and a note where they move to external data."""
        if target is None:
            self._sink.open_memory()
            return ""
        external, note = self._source.has_external_data, ""
        if not external and (size := self._sink.inline_bytes(self._source.proto)) > MOST_INLINE_BYTES:
            external = True
            note = (
                f"the weights are external data in {target.location}: with them, the model would have {size} bytes, "
                f"and an ONNX file ends below {LARGEST_FILE}"
            )
        self._sink.open_files(self._source.proto, target, external=external)
        return note

    def encode(self, budget: MemoryBudget, advance: Callable[[int], None]) -> Mapping[tuple[object, ...], ErrorFigures]:
        """Write all parts, and copy what is kept."""
        wider: set[str] = set()

        def work(unit: _Unit, budget: MemoryBudget = budget) -> ErrorFigures:
            form = unit.plan.form
            assert form is not None
            tensor, name = form.layer.weight.tensor, unit.plan.weight_name
            try:
                figures = encode_weight(form, unit.places, budget)
            except HalfScaleError:
                wider.add(name)
                return NO_ERROR
            except TensorError as error:
                raise tensor_error(self._source.label, name, error) from None
            advance(tensor.nbytes)
            return figures

        whole = {key: unit for key, unit in self._units.items() if _needs_all_memory(unit, budget)}
        figures = {key: work(unit, replace(budget, threads=1)) for key, unit in whole.items()}
        rest = {key: unit for key, unit in self._units.items() if key not in whole}
        with ThreadPoolExecutor(budget.threads) as pool:
            figures.update(zip(rest, pool.map(work, rest.values()), strict=True))
        if wider:
            raise _WiderScales(frozenset(wider))
        for place, tensor in self._copied:
            place.copy_of(tensor)
        return figures

    def finish(self) -> None:
        """Complete files, or bytes in the model."""
        self._sink.finish()

    def outcomes(self, figures: Mapping[tuple[object, ...], ErrorFigures]) -> tuple[NodeOutcome, ...]:
        """What became of every node and every weight, each counted once."""
        counted: set[tuple[int, int]] = set()
        stored: set[tuple[object, ...]] = set()
        found: list[NodeOutcome] = []
        for plan in self._plans:
            weight = None if plan.weight is None else (id(plan.weight.owner), id(plan.weight.tensor))
            key = (weight,) if plan.form is None else plan.key
            found.append(
                _outcome(plan, figures.get(plan.key) if plan.form else None, weight not in counted, key not in stored)
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


def _outcome(plan: NodePlan, figures: ErrorFigures | None, new_source: bool, new_stored: bool) -> NodeOutcome:
    form, weight = plan.form, plan.weight
    source_bytes = 0 if weight is None else weight.tensor.nbytes
    stored_bytes = source_bytes if form is None else form.stored_bytes
    shared = "" if new_stored or weight is None else "shares its weight with a node before"
    return NodeOutcome(
        node=plan.label,
        op_type=plan.op_type,
        weight=plan.weight_name,
        outcome="kept" if form is None else "split" if form.name == "float" else "quantized",
        reason="; ".join(filter(None, (plan.reason, shared))),
        form="" if form is None else form.name,
        parts=0 if form is None else form.parts,
        dtype="" if weight is None else name_of(weight.tensor.data_type),
        shape=() if weight is None else weight.shape,
        source_bytes=source_bytes if new_source else 0,
        stored_bytes=stored_bytes if new_stored else 0,
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


def _patterns(given: Sequence[str] | str) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
