"""Whether a converted model does what its source does: both run in ONNX Runtime, outputs compared, kernels counted."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from splitquant.errors import MissingExtraError, SourceError, SpecError, VerifyError
from splitquant.onnx.dtypes import LOW_BIT
from splitquant.onnx.feeds import Feeds, check_given, generated
from splitquant.onnx.forms.options import INT8_ACTIVATIONS
from splitquant.onnx.graph.scopes import subgraphs
from splitquant.onnx.rewrite import MICROSOFT

Model = ModelProto | str | Path
_RUNS = 3  # sets of generated inputs
# Products of integers: the standard operators, and what ONNX Runtime makes of them.
_INTEGER = ("MatMulInteger", "ConvInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")


@dataclass(frozen=True, slots=True)
class OutputMatch:
    """How near one output of both models is, over all runs: SQNR in dB, cosine similarity, largest difference."""

    name: str
    sqnr_db: float
    cosine: float
    max_error: float


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    branches: low-bit weights that a layer reads (MatMulNBits, or DequantizeLinear or an integer product of a constant) and
    that the source does not have. in_kernels: those that
    ONNX Runtime's optimised graph multiplies with a low-bit kernel. dequantized: those it expands anew in every run.
    operators: how often each operator is in the optimised graph. refusal: what the onnx checker says of `out` where it
    refuses the source too ("": it accepts).
    """

    outputs: tuple[OutputMatch, ...]
    branches: int
    in_kernels: int
    dequantized: int
    operators: Mapping[str, int]
    refusal: str = ""

    @property
    def folded(self) -> int:
        """Branches that the runtime expanded to float once, when it loaded the model."""
        return max(0, self.branches - self.in_kernels - self.dequantized)

    @property
    def worst_sqnr_db(self) -> float:
        """The lowest SQNR of an output."""
        return min((output.sqnr_db for output in self.outputs), default=math.inf)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; an SQNR that is infinite (outputs are the same, or zero where they should not be) is a text."""
        outputs = [
            {**asdict(output), "sqnr_db": output.sqnr_db if math.isfinite(output.sqnr_db) else str(output.sqnr_db)}
            for output in self.outputs
        ]
        return {**asdict(self), "outputs": outputs, "folded": self.folded}


def verify(
    model: Model,
    out: Model,
    inputs: Mapping[str, NDArray[Any]] | Sequence[Mapping[str, NDArray[Any]]] | None = None,
    *,
    sizes: Mapping[str, int] | None = None,
    min_sqnr: float | None = None,
) -> Verification:
    """Run a model and what was made of it, and compare.

    inputs: one or several sets of named arrays; None generates three. sizes: of open dimensions, for generated inputs.
    Raises VerifyError where the onnx checker refuses `out`, where its outputs differ in name or shape, hold NaN that the
    source does not, are below `min_sqnr` dB, or are empty or not finite at all; MissingExtraError without onnxruntime; SourceError
    where `model` does not run; SpecError for a `min_sqnr` of NaN.
    """
    if min_sqnr is not None and math.isnan(min_sqnr):
        raise SpecError("min_sqnr is NaN; expected a number of dB")
    for given in (model, out):
        if not isinstance(given, ModelProto) and not Path(given).is_file():
            raise SourceError(f"{given}: is no file; expected an .onnx model")
    refusal = _check(model, out)
    with tempfile.TemporaryDirectory() as folder:
        before, _ = _session(model, None)
        optimised = Path(folder) / "optimised.onnx"
        after, found = _session(out, optimised)
        assert found is not None
        graph = _graph_of(model)
        sets = _feeds(graph, inputs, sizes)
        outputs = _compared(before, after, sets, str(out) if not isinstance(out, ModelProto) else "the converted model")
    before_it = {branch.codes for branch in _branches(graph.graph)}
    ours = [branch for branch in _branches(_graph_of(out).graph) if branch.codes not in before_it]
    in_kernels, dequantized = _fates(ours, found.graph)
    operators = dict(Counter(_operators(found.graph)))
    result = Verification(outputs, len(ours), in_kernels, dequantized, operators, refusal)
    if min_sqnr is not None and result.worst_sqnr_db < min_sqnr:
        worst = min(outputs, key=lambda output: output.sqnr_db)
        raise VerifyError(
            f"output {worst.name!r} has an SQNR of {worst.sqnr_db:.1f} dB; at least {min_sqnr:.1f} was asked for: "
            "use more bits or clusters, or exclude layers"
        )
    return result


def _check(model: Model, out: Model) -> str:
    """The checker must accept the converted model, unless it refuses the source too; what it then says."""
    said = _refusal(out)
    if said and not _refusal(model):
        raise VerifyError(f"{'the model' if isinstance(out, ModelProto) else out}: the onnx checker says: {said}")
    return said


def _refusal(model: Model) -> str:
    try:
        onnx.checker.check_model(model if isinstance(model, ModelProto) else str(model))
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:  # the last two: of the C++ library
        return str(error)
    return ""


def _session(model: Model, optimised: Path | None) -> tuple[Any, ModelProto | None]:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and told once
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{optimised.name}.data"
        )
    try:
        given = model.SerializeToString() if isinstance(model, ModelProto) else str(model)
        session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common class
        name = "the model in memory" if isinstance(model, ModelProto) else str(model)
        raise SourceError(f"{name}: ONNX Runtime does not load it ({error})") from error
    found = None if optimised is None else onnx.load(str(optimised), load_external_data=False)
    return session, found


def _graph_of(model: Model) -> ModelProto:
    return model if isinstance(model, ModelProto) else onnx.load(str(model), load_external_data=False)


def _feeds(
    graph: ModelProto,
    inputs: Mapping[str, NDArray[Any]] | Sequence[Mapping[str, NDArray[Any]]] | None,
    sizes: Mapping[str, int] | None,
) -> list[Feeds]:
    if inputs is None:
        return [generated(graph, seed, sizes) for seed in range(_RUNS)]
    sets = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    return [check_given(graph, one) for one in sets]


def _compared(  # noqa: C901 - a flat list of checks, each with its reason, reads best in one piece
    before: Any, after: Any, sets: list[Feeds], label: str
) -> tuple[OutputMatch, ...]:
    names = [output.name for output in before.get_outputs()]
    found = [output.name for output in after.get_outputs()]
    if names != found:
        raise VerifyError(f"{label}: has the outputs {found}; the source has {names}")
    sums = {name: np.zeros(4) for name in names}
    worst = dict.fromkeys(names, 0.0)
    finite, texts, found_numbers = dict.fromkeys(names, 0), set[str](), set[str]()
    for feeds in sets:
        for name, wanted, got in _arrays_of(names, _run(before, feeds), _run(after, feeds), label):
            if wanted.shape != got.shape:
                raise VerifyError(f"{label}: output {name!r} has the shape {got.shape}; the source has {wanted.shape}")
            if wanted.dtype.kind in "OSUT":  # text
                if not np.array_equal(wanted, got):
                    raise VerifyError(f"{label}: output {name!r} holds other text than the source")
                if wanted.size:
                    texts.add(name)
                continue
            x, y = wanted.astype(np.float64).ravel(), got.astype(np.float64).ravel()
            usable = np.isfinite(x)
            if not np.isfinite(y[usable]).all():
                raise VerifyError(f"{label}: output {name!r} holds NaN or infinity where the source does not")
            if len(x):
                found_numbers.add(name)
            x, y = x[usable], y[usable]
            finite[name] += len(x)
            sums[name] += (x @ x, y @ y, x @ y, (x - y) @ (x - y))
            worst[name] = max(worst[name], float(np.abs(x - y).max(initial=0.0)))
    for name in names:
        if not finite[name] and name not in texts:
            what = "holds NaN or infinity only" if name in found_numbers else "is empty"
            raise VerifyError(
                f"{label}: output {name!r} {what}, in the source too, so that nothing can be compared: "
                "give real inputs (--inputs FILE.npz)"
            )
    return tuple(_match(name, sums[name], worst[name]) for name in names)


def _arrays_of(
    names: Sequence[str], wanted: Sequence[Any], got: Sequence[Any], label: str
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """The arrays of each output of both models, pair by pair; those of a sequence or a map one after the other."""
    for name, ours, theirs in zip(names, wanted, got, strict=True):
        before, after = _flat(ours), _flat(theirs)
        if len(before) != len(after):
            raise VerifyError(f"{label}: output {name!r} has {len(after)} elements; the source has {len(before)}")
        for x, y in zip(before, after, strict=True):
            yield name, x, y


def _flat(output: Any) -> list[NDArray[Any]]:
    if output is None:
        return []
    if isinstance(output, Mapping):
        return [array for entry in output.items() for part in entry for array in _flat(part)]
    if isinstance(output, list | tuple):
        return [array for part in output for array in _flat(part)]
    return [np.asarray(output)]


def _run(session: Any, feeds: Feeds) -> list[Any]:
    try:
        found: list[Any] = session.run(None, feeds)
    except Exception as error:  # onnxruntime's own exceptions have no common class
        shapes = {name: array.shape for name, array in feeds.items()}
        raise SourceError(
            f"ONNX Runtime does not run the model with inputs of the shapes {shapes} ({error}); "
            "give real inputs (--inputs FILE.npz), or the sizes of its open dimensions (--size NAME=N)"
        ) from error
    return found


def _match(name: str, sums: NDArray[np.float64], worst: float) -> OutputMatch:
    xx, yy, xy, noise = sums.tolist()
    sqnr = math.inf if noise == 0.0 else 10 * math.log10(xx / noise) if xx > 0.0 else -math.inf
    cosine = 1.0 if noise == 0.0 else xy / math.sqrt(xx * yy) if xx > 0.0 and yy > 0.0 else 0.0
    return OutputMatch(name, sqnr, cosine, worst)


def _operators(graph: onnx.GraphProto) -> list[str]:
    found = [node.op_type for node in graph.node]
    return found + [op for node in graph.node for inner in subgraphs(node) for op in _operators(inner)]


@dataclass(frozen=True, slots=True)
class _Branch:
    """A low-bit weight where it is read: its operator, what its codes are called, and what the layer behind it makes."""

    op_type: str
    codes: str
    outputs: frozenset[str]


def _branches(graph: onnx.GraphProto, around: Mapping[str, int] | None = None) -> Iterator[_Branch]:
    """All MatMulNBits, and all DequantizeLinear and integer products of low-bit constants."""
    types = {**(around or {}), **{proto.name: proto.data_type for proto in graph.initializer}}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
        if node.op_type == "Cast" and types.get(node.input[0], 0) in LOW_BIT:
            types[node.output[0]] = types[node.input[0]]
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and types.get(node.input[0], 0) in LOW_BIT:
            layers = readers.get(node.output[0], [])
            if len(layers) == 1 and layers[0].op_type == "Cast":
                layers = readers.get(layers[0].output[0], [])
            yield _Branch(node.op_type, node.input[0], frozenset(name for layer in layers for name in layer.output))
        if node.op_type == "MatMulNBits" and node.domain == MICROSOFT:
            multiplied = node.op_type if _has_kernel(node) else "DequantizeLinear"
            yield _Branch(multiplied, node.input[1], frozenset(node.output))
        if node.op_type in _INTEGER and types.get(node.input[1], 0) in LOW_BIT:
            yield _Branch("integer", node.input[1], frozenset(node.output))
        for inner in subgraphs(node):
            yield from _branches(inner, types)


def _has_kernel(node: onnx.NodeProto) -> bool:
    """Whether ONNX Runtime multiplies packed codes: with float activations it does so in 4 bits alone, else it expands them."""
    said: dict[str, int] = {attribute.name: attribute.i for attribute in node.attribute}
    return said.get("bits", 4) == 4 or said.get("accuracy_level", 0) == INT8_ACTIVATIONS


def _fates(ours: Sequence[_Branch], found: onnx.GraphProto) -> tuple[int, int]:
    """How many branches the optimised graph multiplies with a low-bit kernel, and how many it dequantizes in every run.

    ONNX Runtime keeps the name of what a layer makes, and adds to that of the codes.
    """
    outputs = {name for branch in ours for name in branch.outputs}
    codes = {branch.codes for branch in ours}
    fates = Counter(
        branch.op_type
        for branch in _branches(found)
        if branch.outputs & outputs or branch.codes in codes or branch.codes.rsplit("_T", 1)[0] in codes
    )
    return fates["MatMulNBits"] + fates["integer"], fates["DequantizeLinear"]
