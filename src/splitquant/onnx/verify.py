"""Whether a converted model does what its source does: both run in ONNX Runtime, outputs compared, kernels counted."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from splitquant.errors import SourceError, SpecError, VerifyError
from splitquant.onnx.compare import OutputMatch, compared
from splitquant.onnx.explained import explained
from splitquant.onnx.fates import branches_of, fates_of, operators
from splitquant.onnx.feeds import Feeds, check_given
from splitquant.onnx.graph.operands import RECURRENT
from splitquant.onnx.plan import FOLDED_AT_LOAD
from splitquant.onnx.runtime import graph_at, made_up, session_of

Model = ModelProto | str | Path
_RUNS = 3  # sets of generated inputs
SURE_DB = 20.0
MARGIN_DB = 10.0
_LOUD_DB = 10.0
_SLOW = ("Conv", "ConvTranspose", "FusedConv", *RECURRENT)


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    branches: low-bit weights that a layer reads (MatMulNBits, or DequantizeLinear or an integer product of a constant) and
    that the source does not have. in_kernels: those that
    ONNX Runtime's optimised graph multiplies with a low-bit kernel. dequantized: those it expands anew in every run.
    operators: how often each operator is in the optimised graph. refusal: what the onnx checker says of `out` where it
    refuses the source too ("": it accepts). warnings: what is no error, and should be looked at. hints: what would be faster.
    """

    outputs: tuple[OutputMatch, ...]
    branches: int
    in_kernels: int
    dequantized: int
    operators: Mapping[str, int]
    refusal: str = ""
    warnings: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()

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
            {**asdict(one), "sqnr_db": _in_json(one.sqnr_db), "explained_db": _in_json(one.explained_db)}
            for one in self.outputs
        ]
        return {
            **asdict(self),
            "outputs": outputs,
            "warnings": list(self.warnings),
            "hints": list(self.hints),
            "folded": self.folded,
        }


def verify(
    model: Model,
    out: Model,
    inputs: Mapping[str, NDArray[Any]] | Sequence[Mapping[str, NDArray[Any]]] | None = None,
    *,
    sizes: Mapping[str, int] | None = None,
    min_sqnr: float | None = None,
) -> Verification:
    """Run a model and what was made of it, and compare.

    Args:
        model: the source.
        out: what was made of it.
        inputs: one or several sets of named arrays; None generates three.
        sizes: of open dimensions, for generated inputs.
        min_sqnr: what every output must have, in dB. None: an output of floats fails that has less than 20 dB and is more
            than 10 dB below what its weights explain, which is the SQNR of the source with the decoded weights in it.

    Raises:
        VerifyError: where the onnx checker refuses `out`, where its outputs differ in name or shape, hold NaN that the
            source does not, are too far away (see `min_sqnr`), or are empty or not finite at all.
        MissingExtraError: without onnxruntime.
        SourceError: where `model` does not run.
        SpecError: for a `min_sqnr` of NaN.
    """
    if min_sqnr is not None and math.isnan(min_sqnr):
        raise SpecError("min_sqnr is NaN; expected a number of dB")
    for given in (model, out):
        if not isinstance(given, ModelProto) and not Path(given).is_file():
            raise SourceError(f"{given}: is no file; expected an .onnx model")
    refusal = _check(model, out)
    label = "the converted model" if isinstance(out, ModelProto) else str(out)
    with tempfile.TemporaryDirectory() as folder:
        before = session_of(model)
        optimised = Path(folder) / "optimised.onnx"
        after = session_of(out, optimised)
        found = graph_at(optimised)
        graph = _graph_of(model)
        sets = _feeds(before, graph, inputs, sizes)
        outputs = compared(before, after, sets, label)
        before_it = {branch.codes for branch in branches_of(graph.graph)}
        converted = _graph_of(out)
        ours = [branch for branch in branches_of(converted.graph) if branch.codes not in before_it]
        in_kernels, dequantized = fates_of(ours, found.graph)
        said, hints = list[str](), _slow_convolutions(found)
        if any(proto.data_type == TensorProto.FLOAT16 for proto in converted.graph.initializer):
            said += _unoptimised(before, after, out, sets[:1])
    if min_sqnr is None:
        outputs = _explained(outputs, model, out, before, sets)
        said += _judged(outputs, {one.name for one in before.get_outputs() if "float" in one.type}, label)
    counts = dict(Counter(operators(found.graph)))
    result = Verification(outputs, len(ours), in_kernels, dequantized, counts, refusal, tuple(said), tuple(hints))
    if min_sqnr is not None and result.worst_sqnr_db < min_sqnr:
        worst = min(outputs, key=lambda output: output.sqnr_db)
        raise VerifyError(
            f"output {worst.name!r} has an SQNR of {worst.sqnr_db:.1f} dB; at least {min_sqnr:.1f} was asked for: "
            "use more bits or clusters, or exclude layers"
        )
    return result


def _explained(
    outputs: tuple[OutputMatch, ...], model: Model, out: Model, before: Any, sets: list[Feeds]
) -> tuple[OutputMatch, ...]:
    """The outputs with what the weights explain; as they are where all are near, so that nothing has to be explained."""
    if all(one.sqnr_db >= SURE_DB for one in outputs):
        return outputs
    try:
        decoded = explained(model, out)
        if decoded is None:
            return outputs
        likely = compared(before, session_of(decoded), sets, "the source with the decoded weights")
    except (
        SourceError,
        VerifyError,
    ):  # the weights alone make NaN, or other shapes: nothing to hold the outputs against
        return outputs
    return tuple(replace(one, explained_db=other.sqnr_db) for one, other in zip(outputs, likely, strict=True))


def _judged(outputs: Iterable[OutputMatch], floats: set[str], label: str) -> list[str]:
    """Warnings for what is far away; VerifyError where the weights do not explain it."""
    said = []
    for one in outputs:
        if one.sqnr_db >= SURE_DB:
            continue
        if one.explained_db is None:
            if one.sqnr_db < _LOUD_DB:
                said.append(
                    f"output {one.name!r} has only {one.sqnr_db:.1f} dB, and what the weights alone would make of it could "
                    "not be measured: give real inputs (--inputs FILE.npz), and look at the results"
                )
        elif one.sqnr_db < one.explained_db - MARGIN_DB:
            text = (
                f"output {one.name!r} has an SQNR of {one.sqnr_db:.1f} dB, and its weights alone would leave "
                f"{one.explained_db:.1f} dB"
            )
            if one.name in floats:
                raise VerifyError(
                    f"{label}: {text}: something else changed the results, in the model or in this version of the runtime; "
                    "try another --format or --activations, or --accuracy-level 1, or set a bound of your own (--min-sqnr DB)"
                )
            said.append(f"{text}; it holds no floats, so that a small change may turn it over")
        elif one.sqnr_db < _LOUD_DB:
            said.append(
                f"output {one.name!r} has only {one.sqnr_db:.1f} dB, by its weights alone: use more bits, or groups, or give "
                "real inputs (--inputs FILE.npz) if the made-up ones mean nothing to the model"
            )
    return said


def _slow_convolutions(found: ModelProto) -> list[str]:
    """Convolutions and recurrent layers whose weights the optimised graph still dequantizes."""
    made = {name for node in found.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    slow = [n for n in found.graph.node if n.op_type in _SLOW and len(n.input) > 1 and n.input[1] in made]
    if not slow:
        return []
    said = (
        f"{len(slow)} convolutions or recurrent layers dequantize their weights in every run, and are slower than float ones: with the session "
        f'entry {FOLDED_AT_LOAD} = "1" ONNX Runtime does so once, when it loads the model'
    )
    return [said]


def _unoptimised(before: Any, after: Any, out: Model, sets: list[Feeds]) -> list[str]:
    """Whether a model gives the same without optimisations; one with float16 in it does not in every runtime."""
    label = "without optimisations"
    try:
        plain = compared(before, session_of(out, optimise=False), sets, label)
        best = compared(before, after, sets, label)
    except (SourceError, VerifyError) as error:
        return [f"with graph optimisations disabled, ONNX Runtime does not run it rightly: {error}"]
    return [
        f"with graph optimisations disabled, output {one.name!r} has {one.sqnr_db:.1f} dB in this version of ONNX Runtime: "
        "leave them all enabled, as they are by default, or use --accuracy-level 1"
        for one, other in zip(plain, best, strict=True)
        if one.sqnr_db < min(SURE_DB, other.sqnr_db - MARGIN_DB)
    ]


def _in_json(decibels: float | None) -> float | str | None:
    return decibels if decibels is None or math.isfinite(decibels) else str(decibels)


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


def _graph_of(model: Model) -> ModelProto:
    return model if isinstance(model, ModelProto) else graph_at(Path(model))


def _feeds(
    before: Any,
    graph: ModelProto,
    inputs: Mapping[str, NDArray[Any]] | Sequence[Mapping[str, NDArray[Any]]] | None,
    sizes: Mapping[str, int] | None,
) -> list[Feeds]:
    if inputs is None:
        return made_up(before, graph, _RUNS, sizes)
    sets = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    return [check_given(graph, one) for one in sets]
