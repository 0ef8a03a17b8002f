"""Claim: INT8 activations cost little beside the weights; what they cost is shown on its own.

    python -m benchmarks.quality.onnx_activations [--data ../shared/data] [--docs]

Real models in ONNX Runtime on one thread: float weights and several kinds of quantized ones, each with float activations and
with INT8 ones. For float weights the input of every layer is quantized and decoded again in the graph, on the
grid that DynamicQuantizeLinear finds. --docs writes the section of docs/results/onnx.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import onnx
from onnx import helper, version_converter

import splitquant.onnx as sqo
from benchmarks.quality.onnx_page import put
from benchmarks.quality.onnx_tasks import Task, session, tasks
from splitquant import QuantSpec

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NAMES = ("all-MiniLM-L6-v2", "stories260K", "silero-vad 16k", "ultraface RFB-320", "ResNet-20")
SPECS = {
    "INT8 plain, channel": QuantSpec(8, 1),
    "INT4 plain, channel": QuantSpec(4, 1),
    "INT4 k=3 min_error, channel": QuantSpec(4, 3, layout="parallel"),
    "INT4 k=2 residual, channel": QuantSpec(4, 2, "residual"),
}


def with_int8_inputs(model: Path, out: Path) -> Path:
    """The float model with the input of every layer on its INT8 grid."""
    proto = onnx.load(model)
    if proto.opset_import[0].version < 11:  # the first with DynamicQuantizeLinear
        proto = version_converter.convert_version(proto, 11)
    converted = {row.name for row in sqo.split(model, spec=QuantSpec(clusters=1)).report.changed}
    nodes = []
    for node in proto.graph.node:
        if (node.name or node.output[0]) in converted and node.op_type in ("MatMul", "Gemm", "Conv"):
            made = [f"{node.output[0]}.{what}" for what in ("codes", "scale", "zero_point", "decoded")]
            nodes.append(helper.make_node("DynamicQuantizeLinear", [node.input[0]], made[:3]))
            nodes.append(helper.make_node("DequantizeLinear", made[:3], made[3:]))
            node.input[0] = made[3]
        nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, out)
    return out


def row(task: Task, name: str, wanted: object, out: Path) -> list[str]:
    """A model's results with float activations, int8-tensor, and MatMulNBits' int8-token-sym."""
    spec = SPECS.get(name)
    found = []
    for activations in (None, "int8-tensor", "int8-token-sym"):
        if spec is not None:
            form = "matmulnbits" if activations == "int8-token-sym" else "qdq"
            sqo.quantize(task.model, out, spec, format=form, activations=activations, force=True)
            found.append(task.cell(wanted, task.run(session(out, float_activations=True))))
        elif activations == "int8-token-sym":
            found.append("")
        else:
            model = task.model if activations is None else with_int8_inputs(task.model, out.with_name("inputs.onnx"))
            found.append(task.cell(wanted, task.run(session(model))))
    print(f"{task.name}, {name}: {found}", file=sys.stderr)
    return found


def section(found: list[Task], missing: list[str], out: Path) -> str:
    """The section of the page."""
    lines = [
        "## INT8 activations",
        "",
        "Written by `python -m benchmarks.quality.onnx_activations --docs`. *int8-tensor*: QDQ models become DynamicQuantizeLinear and integer",
        "products, convolutions too. *int8-token-sym*: MatMulNBits with accuracy_level 4; convolutions keep float activations.",
        *missing,
    ]
    for task in found:
        wanted = task.run(session(task.model))
        lines += ["", f"{task.name}: {task.measure}", ""]
        lines += ["| weights | float activations | int8-tensor | int8-token-sym |", "|---|---:|---:|---:|"]
        lines += [f"| {name} | {' | '.join(row(task, name, wanted, out))} |" for name in ("float32", *SPECS)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--docs", action="store_true", help="write the section of docs/results/onnx.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found, missing = tasks(options.data, Path(name))
        text = section([task for task in found if task.name in NAMES], missing, Path(name) / "out.onnx")
    print(text)
    if options.docs:
        put("activations", text)


if __name__ == "__main__":
    main()
