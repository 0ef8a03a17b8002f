"""What quantizing a 1 GB ONNX file costs beside copying it and beside onnxruntime's quantizer, and what k branches cost to run.

    python -m benchmarks.speed.onnx_speed [--runs 5] [--layers 16] [--docs]

Makes a model of [4096, 4096] float32 MatMuls with external data (64 MiB each) in a temporary folder, and times whole
processes in turn, the model in the page cache: `cp` of it, `cp` of what k = 3 writes, our quantizer, and onnxruntime's
MatMulNBitsQuantizer. Then times inference in this process, on one thread. --docs writes the section of docs/results/onnx.md.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import splitquant.onnx as sqo
from benchmarks.quality.onnx_page import put
from benchmarks.quality.onnx_tasks import session
from benchmarks.speed.whole_process import in_turn, measure, median
from splitquant import QuantSpec

WIDTH = 4096

OURS = """
import sys
import splitquant.onnx as sqo
from splitquant import QuantSpec
spec = QuantSpec(bits=4, clusters=int(sys.argv[3]), layout="parallel")
sqo.quantize(sys.argv[1], sys.argv[2], spec, format=sys.argv[4])
"""
THEIRS = """
import sys
import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
quantizer = MatMulNBitsQuantizer(onnx.load(sys.argv[1]), bits=4, block_size=128, is_symmetric=False, accuracy_level=4)
quantizer.process()
quantizer.model.save_model_to_file(sys.argv[2], use_external_data_format=True)
"""


def make(path: Path, layers: int, width: int) -> None:
    """A chain of MatMuls with heavy-tailed weights in external data."""
    rng = np.random.default_rng(0)
    base = (rng.standard_t(5, width * width + layers) * 0.02).astype(np.float32)
    tensors, nodes, name = [], [], "x"
    with path.with_name(f"{path.name}.data").open("wb") as file:
        for layer in range(layers):
            tensor = TensorProto(name=f"l{layer}.weight", data_type=TensorProto.FLOAT, dims=[width, width])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", f"{path.name}.data"),
                ("offset", file.tell()),
                ("length", width * width * 4),
            ):
                tensor.external_data.add(key=key, value=str(value))
            file.write(base[layer : layer + width * width].tobytes())
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [name, tensor.name], [f"h{layer}"], name=f"l{layer}"))
            name = f"h{layer}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", width])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", width])]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def quantizing(work: Path, layers: int, runs: int) -> list[str]:
    source, out = work / "model" / "model.onnx", work / "out"
    source.parent.mkdir()
    make(source, layers, WIDTH)

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for path in (Path(f"{source}.data"), written):
            with path.open("rb") as file:  # into the page cache, out of which a machine may have dropped it
                while file.readinto(room):
                    pass

    def ours(clusters: int, form: str) -> list[str]:
        return [sys.executable, "-c", OURS, str(source), str(out / "out.onnx"), str(clusters), form]

    room, written = bytearray(8 << 20), work / "written"
    out.mkdir()
    measure(ours(3, "matmulnbits"))
    (out / "out.onnx.data").rename(written)
    named = {
        "cp of the model": ["cp", f"{source}.data", str(out / "copy")],
        "cp of what MatMulNBits, k=3 writes": ["cp", str(written), str(out / "copy")],
        "splitquant, MatMulNBits, k=1": ours(1, "matmulnbits"),
        "splitquant, MatMulNBits, k=3": ours(3, "matmulnbits"),
        "splitquant, QDQ, k=3": ours(3, "qdq"),
        "onnxruntime MatMulNBitsQuantizer": [sys.executable, "-c", THEIRS, str(source), str(out / "out.onnx")],
    }
    sizes: list[int] = []

    def before() -> None:
        sizes.append(sum(path.stat().st_size for path in out.iterdir()))
        clean()

    rounds = in_turn(list(named.values()), runs, before)
    walls = [median([one[at].wall_seconds for one in rounds]) for at in range(len(named))]
    lines = [
        f"A model of {layers * WIDTH * WIDTH * 4 / 1e9:.2f} GB with external data, INT4, {runs} rounds in turn, whole processes, medians.",
        "The last column is the ratio of these walls, and in brackets the least and the largest of a round.",
        "",
        "| what | wall, s | processor, s | peak MiB | writes, MB | times the wall of cp | times faster than onnxruntime |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for at, label in enumerate(named):
        column = [one[at] for one in rounds]
        faster = [one[-1].wall_seconds / one[at].wall_seconds for one in rounds]
        lines.append(
            f"| {label} | {walls[at]:.2f} | {median([one.cpu_seconds for one in column]):.2f} "
            f"| {max(one.peak_mib for one in column):.0f} | {sizes[at + 1] / 1e6:.0f} | {walls[at] / walls[0]:.1f} "
            f"| {walls[-1] / walls[at]:.1f} ({min(faster):.1f} to {max(faster):.1f}) |"
        )
    return lines


def inference(work: Path) -> list[str]:
    """Four 2048 x 2048 layers, one thread."""
    source = work / "small" / "model.onnx"
    source.parent.mkdir()
    make(source, 4, 2048)
    models: dict[str, Path] = {"float32": source}
    for bits, clusters in ((4, 1), (4, 2), (4, 3), (2, 3), (8, 1)):
        spec = QuantSpec(bits=bits, clusters=clusters, layout="parallel")
        label = f"INT{bits} " + ("plain" if clusters == 1 else f"k={clusters}")
        for form in ("matmulnbits", "qdq") if (bits, clusters) == (4, 3) else ("matmulnbits",):
            sqo.quantize(source, work / f"{bits}{clusters}{form}.onnx", spec, format=form)
            models[f"{label}, {form}"] = work / f"{bits}{clusters}{form}.onnx"
    lines = [
        "Inference in ONNX Runtime, four 2048 x 2048 layers, one thread, median of interleaved runs, ms:",
        "",
        "| weights | 1 row | 32 rows | size of weights, MB |",
        "|---|---:|---:|---:|",
    ]
    sessions = {label: session(path) for label, path in models.items()}
    feeds = [{"x": np.random.default_rng(1).standard_normal((rows, 2048)).astype(np.float32)} for rows in (1, 32)]
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(30):
        for label, model in sessions.items():
            for at, one in enumerate(feeds):
                started = time.perf_counter()
                model.run(None, one)
                times.setdefault((label, at), []).append(1000 * (time.perf_counter() - started))
    for label, path in models.items():
        size = path.with_name(f"{path.name}.data").stat().st_size / 1e6
        row, rows = (statistics.median(times[label, at]) for at in range(2))
        lines.append(f"| {label} | {row:.2f} | {rows:.2f} | {size:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--work", type=Path, help="where to put the files (default: a temporary folder)")
    parser.add_argument("--docs", action="store_true", help="write the section of docs/results/onnx.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        work = Path(name)
        # First the processes: a child's peak memory counts that of the parent it was forked from.
        lines = ["## Speed", "", "Written by `python -m benchmarks.speed.onnx_speed --docs`.", ""]
        lines += [*quantizing(work, options.layers, options.runs), "", *inference(work)]
    text = "\n".join(lines)
    print(text)
    if options.docs:
        put("speed", text)


if __name__ == "__main__":
    main()
