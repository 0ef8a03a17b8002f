"""Which opset and IR version a converted model needs, and how it gets there: only as far as the types need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from onnx import (
    FunctionProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    inliner,
    shape_inference,
    version_converter,
)

from splitquant.errors import SourceError
from splitquant.onnx.graph.meanings import mend_meanings, not_raised
from splitquant.onnx.graph.scopes import STANDARD, subgraphs
from splitquant.onnx.graph.words import restore_words

_QDQ: dict[int, int] = {TensorProto.INT2: 25, TensorProto.UINT2: 25, TensorProto.INT4: 21, TensorProto.UINT4: 21}
MOST_NODES = 1_000_000  # that local functions may expand to
PER_AXIS, HALF_SCALE, BLOCKED, ANY = 13, 19, 21, 1
FIRST_WITH_DEFAULTS = 4  # IR version: initializers among the inputs are defaults that a caller may replace
INTEGER = 11  # the first with DynamicQuantizeLinear


def dequantize_opset(data_type: int, *, per_axis: bool, half: bool, blocked: bool) -> int:
    """The first opset whose DequantizeLinear takes codes and scales of this kind."""
    return max(
        _QDQ.get(data_type, 10),
        PER_AXIS if per_axis else 10,
        HALF_SCALE if half else 10,
        BLOCKED if blocked else 10,
    )


def opset_of(model: ModelProto) -> int:
    """The opset of the standard operators of a model (0: it uses none)."""
    versions: list[int] = [entry.version for entry in model.opset_import if entry.domain in STANDARD]
    return max(versions, default=0)


def inline_functions(model: ModelProto, label: str) -> tuple[ModelProto, str]:
    """The model with its local functions put in place of their calls, and a note on it ("" where there are none)."""
    if not model.functions:
        return model, ""
    _check_expansion(model, label)
    try:
        flat = inliner.inline_local_functions(model)
        if flat.functions:  # those of another opset than the model's
            flat = _inlined_with_conversion(flat)
    except Exception as error:  # the inliner raises whatever its C++ side throws
        raise SourceError(
            f"{label}: its local functions cannot be inlined ({error}); export it without functions"
        ) from error
    restore_words(model, flat)
    left = {(function.domain, function.name) for function in flat.functions}
    names = [function.name for function in model.functions if (function.domain, function.name) not in left]
    notes = [f"{len(names)} local functions were inlined, so that their weights can be split: {_shown(names)}"]
    if left:
        notes.append(
            f"{len(left)} local functions stay as they are, with their weights, since the onnx inliner does not inline "
            f"them (their opset is not the model's): {_shown([name for _, name in left])}"
        )
    return flat, "; ".join(notes if names else notes[1:])


def _inlined_with_conversion(model: ModelProto) -> ModelProto:
    """The model with functions of other opsets inlined too, or as it is where the inliner cannot."""
    typed = ModelProto()
    typed.CopyFrom(model)
    # The inliner wants to know the type of everything.
    typed.graph.value_info.extend(
        helper.make_tensor_value_info(proto.name, proto.data_type, proto.dims) for proto in typed.graph.initializer
    )
    try:
        return inliner.inline_local_functions(shape_inference.infer_shapes(typed), convert_version=True)
    except Exception:  # noqa: BLE001 - the inliner raises whatever its C++ side throws
        return model


def _check_expansion(model: ModelProto, label: str) -> None:
    """Refuse functions that call themselves, and those that would expand to more nodes than a model may have."""
    functions = {(function.domain, function.name): function for function in model.functions}
    nodes: dict[tuple[str, str], int] = {}
    sizes = {key: sum(1 for _ in _all_nodes(function.node)) for key, function in functions.items()}
    calls = {key: _calls(function.node, functions) for key, function in functions.items()}
    ready = [key for key in functions if not calls[key]]
    callers: dict[tuple[str, str], list[tuple[str, str]]] = {key: [] for key in functions}
    for key, called in calls.items():
        for other in called:
            callers[other].append(key)
    waiting = {key: len(called) for key, called in calls.items()}
    while ready:
        key = ready.pop()
        nodes[key] = sizes[key] + sum(count * nodes[other] for other, count in calls[key].items())
        for caller in callers[key]:
            waiting[caller] -= 1
            if waiting[caller] == 0:
                ready.append(caller)
    if len(nodes) < len(functions):
        raise SourceError(f"{label}: has local functions that call themselves; export it without functions")
    total = sum(count * nodes[key] for key, count in _calls(model.graph.node, functions).items())
    if total > MOST_NODES:
        raise SourceError(
            f"{label}: its local functions expand to {total} nodes; at most {MOST_NODES} are allowed: "
            "export it without functions"
        )


def _calls(nodes: Iterable[NodeProto], functions: Mapping[tuple[str, str], FunctionProto]) -> Counter[tuple[str, str]]:
    """How often each function is called."""
    return Counter(key for node in _all_nodes(nodes) if (key := (node.domain, node.op_type)) in functions)


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from _all_nodes(inner.node)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def raise_opset(model: ModelProto, needed: int, label: str) -> tuple[ModelProto, str]:
    """The model at opset `needed` or later, by the official converter, and a note on it ("" where nothing was needed)."""
    found = opset_of(model)
    if found >= needed:
        return model, ""
    if why := not_raised(model.graph, found, needed):
        raise SourceError(
            f"{label}: has opset {found}, its low-bit types need {needed}, and {why}; export the model with opset {needed}, or "
            "use --format matmulnbits"
        )
    model.ir_version = max(
        model.ir_version, FIRST_WITH_DEFAULTS
    )  # before, the converter wants initializers among the inputs
    try:
        raised: ModelProto = version_converter.convert_version(model, needed)
    except Exception as error:  # the converter raises whatever its C++ side throws
        if model.graph.sparse_initializer:
            raise SourceError(
                f"{label}: has opset {found}, its low-bit types need {needed}, and the onnx version converter does not "
                f"know sparse initializers; make them dense, or export the model with opset {needed}"
            ) from error
        raise SourceError(
            f"{label}: has opset {found}, its low-bit types need {needed}, and the onnx version converter fails "
            f"({str(error).strip()}); export the model with opset {needed}, or use --format matmulnbits, or 8 bits"
        ) from error
    restore_words(model, raised)
    mend_meanings(model.graph, raised.graph, found, needed)
    known = {entry.domain for entry in raised.opset_import}
    raised.opset_import.extend(entry for entry in model.opset_import if entry.domain not in (known | set(STANDARD)))
    return raised, f"opset raised from {found} to {needed}"


def least_ir_version(model: ModelProto) -> int:
    """The IR version that the opsets of a model ask for, and 4 at least, where initializers need not be inputs."""
    standard = [entry for entry in model.opset_import if entry.domain in STANDARD]
    needed = helper.find_min_ir_version_for(standard, ignore_unknown=True) if standard else 4
    return max(model.ir_version, needed, FIRST_WITH_DEFAULTS)
