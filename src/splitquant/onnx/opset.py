"""Which opset and IR version a converted model needs, and how it gets there: only as far as the types need."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, helper, inliner, version_converter

from splitquant.errors import SourceError
from splitquant.onnx.scopes import STANDARD

_QDQ: dict[int, int] = {TensorProto.INT2: 25, TensorProto.UINT2: 25, TensorProto.INT4: 21, TensorProto.UINT4: 21}
PER_AXIS, HALF_SCALE, BLOCKED, ANY = 13, 19, 21, 1


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
    names = sorted(function.name for function in model.functions)
    try:
        flat = inliner.inline_local_functions(model)
    except Exception as error:  # the inliner raises whatever its C++ side throws
        raise SourceError(
            f"{label}: its local functions cannot be inlined ({error}); export it without functions"
        ) from error
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return flat, f"{len(names)} local functions were inlined, so that their weights can be split: {shown}"


def raise_opset(model: ModelProto, needed: int, label: str) -> tuple[ModelProto, str]:
    """The model at opset `needed` or later, by the official converter, and a note on it ("" where nothing was needed)."""
    found = opset_of(model)
    if found >= needed:
        return model, ""
    try:
        raised: ModelProto = version_converter.convert_version(model, needed)
    except Exception as error:  # the converter raises whatever its C++ side throws
        raise SourceError(
            f"{label}: has opset {found}, its low-bit types need {needed}, and the onnx version converter fails "
            f"({str(error).strip()}); export the model with opset {needed}, or use --format matmulnbits, or 8 bits"
        ) from error
    # What the converter drops: entries for operators of other domains.
    known = {entry.domain for entry in raised.opset_import}
    raised.opset_import.extend(entry for entry in model.opset_import if entry.domain not in (known | set(STANDARD)))
    return raised, f"opset raised from {found} to {needed}"


def least_ir_version(model: ModelProto) -> int:
    """The IR version that the opsets of a model ask for, and 4 at least, where initializers need not be inputs."""
    standard = [entry for entry in model.opset_import if entry.domain in STANDARD]
    needed = helper.find_min_ir_version_for(standard, ignore_unknown=True) if standard else 4
    return max(model.ir_version, needed, 4)
