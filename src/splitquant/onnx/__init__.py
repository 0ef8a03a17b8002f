"""ONNX in, ONNX out: split any ONNX model by value, or quantize it, for the runtimes and toolchains that read ONNX.

    import splitquant.onnx as sqo
    sqo.split("model.onnx", "split.onnx")        # float, functionally equivalent, k branches per layer
    sqo.quantize("model.onnx", "int4.onnx")      # integer weights in standard operators (QDQ) or MatMulNBits
    sqo.verify("model.onnx", "int4.onnx")        # runs both in ONNX Runtime and compares

Importing this module needs the onnx package; only `verify` needs onnxruntime.
"""

from __future__ import annotations

from splitquant.errors import MissingExtraError

try:
    import onnx as _onnx  # noqa: F401
except ImportError as error:
    raise MissingExtraError("the onnx package", "onnx") from error

from splitquant.onnx.compare import OutputMatch
from splitquant.onnx.convert import quantize, split
from splitquant.onnx.forms.options import DEFAULT_SPEC, SPLIT_SPEC, OnnxForm
from splitquant.onnx.job import Converted
from splitquant.onnx.verify import Verification, verify
from splitquant.report.outcome import Outcome, Report

__all__ = [
    "DEFAULT_SPEC",
    "SPLIT_SPEC",
    "Converted",
    "OnnxForm",
    "Outcome",
    "OutputMatch",
    "Report",
    "Verification",
    "quantize",
    "split",
    "verify",
]
