"""Whether a float model still does the same once its opset is raised: both run in ONNX Runtime, where it is at hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from splitquant.errors import SourceError, SpecError, VerifyError
from splitquant.onnx.compare import compared
from splitquant.onnx.feeds import Feeds
from splitquant.onnx.graph.filled import filled, weight_bytes
from splitquant.onnx.graph.opset import opset_of
from splitquant.onnx.graph.scopes import open_scopes
from splitquant.onnx.runtime import is_at_hand, made_up, run, session_of
from splitquant.onnx.wire.source import Source

_SAME_DB = 40.0  # float16 included; what changes its meaning has 30 and less
_NOT_COMPARED = (
    "not compared after its opset was raised, since the source does not run in ONNX Runtime on made-up inputs: "
    "verify it with real ones"
)
_LEAST_SIZE = (
    32  # of open dimensions: no window of a pooling is larger than its input, where runtimes make what they like
)
_COPIES = 6  # of all weights: two graphs, each as objects, as text and in a session


def check_raised(before: Source, after: Source, most_bytes: int) -> str:
    """Run a model and the same model at a later opset, without optimisations, on made-up inputs.

    Args:
        before: the source.
        after: the source, raised.
        most_bytes: what may be in memory for it.

    Returns:
        A note where they could not be compared ("": they were, or ONNX Runtime is not installed).

    Raises:
        SourceError: where the raised model does not load or makes something else, with the operator that does.
    """
    if not is_at_hand():
        return ""
    if _COPIES * weight_bytes(open_scopes(before)) > most_bytes:
        return "too large to be run within max-memory after its opset was raised: see what verify says"
    old, new = filled(before), filled(after)
    try:
        session = session_of(old, optimise=False)
    except SourceError:
        return _NOT_COMPARED
    said = f"{before.label}: opset {opset_of(old)} has to be raised to {opset_of(new)} for its low-bit types, and"
    remedy = f"export it with opset {opset_of(new)}, or use --format matmulnbits, or 8 bits"
    try:
        raised = session_of(new, optimise=False)
    except SourceError as error:
        raise SourceError(f"{said} then ONNX Runtime does not load it ({error.__cause__}); {remedy}") from error
    try:
        sets = made_up(session, old, 1, least=_LEAST_SIZE)
        steady = [one.name for one in compared(session, session, sets, before.label) if one.sqnr_db >= _SAME_DB]
    except (SourceError, SpecError, VerifyError):
        return _NOT_COMPARED
    try:
        matches = {one.name: one.sqnr_db for one in compared(session, raised, sets, before.label)}
    except (SourceError, VerifyError) as error:
        raise SourceError(f"{said} {_culprit(old, new, sets)} does not do the same then ({error}); {remedy}") from error
    if far := [name for name in steady if matches[name] < _SAME_DB]:
        raise SourceError(
            f"{said} {_culprit(old, new, sets)} does not do the same then (output {far[0]!r}: {matches[far[0]]:.1f} dB); {remedy}"
        )
    return ""


def _culprit(old: ModelProto, new: ModelProto, sets: list[Feeds]) -> str:
    """The first node whose output differs, where both models can return all that is inside."""
    there = {name for node in new.graph.node for name in node.output}
    makers = {name: node for node in old.graph.node for name in node.output if name in there}
    try:
        wanted, got = (run(session_of(_with_outputs(model, makers), optimise=False), sets[0]) for model in (old, new))
    except SourceError:
        return "an operator"
    for (name, node), x, y in zip(makers.items(), wanted, got, strict=True):
        if isinstance(x, np.ndarray) and not _is_same(x, y):
            return f"{node.op_type} (node {node.name or name!r})"
    return "an operator"


def _with_outputs(model: ModelProto, names: Iterable[str]) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(model)
    del copied.graph.output[:]
    copied.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return copied


def _is_same(x: NDArray[Any], y: NDArray[Any]) -> bool:
    if x.shape != y.shape or x.dtype != y.dtype or x.dtype.kind in "OSUT":
        return x.shape == y.shape and x.dtype == y.dtype and np.array_equal(x, y)
    a, b = x.astype(np.float64), y.astype(np.float64)
    return bool(
        np.allclose(a, b, rtol=0, atol=1e-2 * float(np.abs(a[np.isfinite(a)]).max(initial=0.0)), equal_nan=True)
    )
