"""Claim: a model of more than 2 GB is split and quantized in bounded memory, and its last bytes are right.

    python -m benchmarks.speed.onnx_over_2gb [--layers 40] [--max-memory 512MB] [--docs]

Makes a model of [4096, 4096] float32 MatMuls with external data, 64 MiB each, and converts it in processes of their own:
split in 2 (whose data pass 4 GB), and INT4 with k = 3 in both formats. Then reads the first and the last layer of every
result back from the file, against the float weights, and runs the results of less than 4 GB in ONNX Runtime.
--docs writes the section of docs/results/onnx.md. Needs 15 GB of disk for the default size.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import load_external_data_for_tensor

from benchmarks.quality.onnx_page import put
from benchmarks.speed.onnx_speed import WIDTH, make, session
from benchmarks.speed.whole_process import measure
from splitquant.core.kernels import kernels
from splitquant.sizes import parse_bytes

F32 = NDArray[np.float32]
JOB = """
import sys
import splitquant.onnx as sqo
from splitquant import QuantSpec
source, out, form, clusters, memory = sys.argv[1:]
spec = QuantSpec(bits=4, clusters=int(clusters), layout="parallel")
if form == "split":
    sqo.split(source, out, spec, max_memory=memory)
else:
    sqo.quantize(source, out, spec, format=form, max_memory=memory)
"""
RUNS_BELOW = 4 << 30  # of external data: all of it is in memory when a float model runs


def tensor(model: ModelProto, folder: Path, name: str) -> TensorProto:
    """A tensor of a model with its bytes."""
    found = next(proto for proto in model.graph.initializer if proto.name == name)
    if found.data_location == TensorProto.EXTERNAL:
        load_external_data_for_tensor(found, str(folder))
    return found


def values(proto: TensorProto) -> NDArray[Any]:
    """The elements of a tensor, those of 4 bits too."""
    if proto.data_type == TensorProto.UINT4:
        flat = np.frombuffer(proto.raw_data, np.uint8)[None]
        return kernels().unpack(flat, math.prod(proto.dims), 4).reshape(proto.dims)
    return onnx.numpy_helper.to_array(proto)


def part(model: ModelProto, folder: Path, base: str, form: str) -> F32:
    """The weights that one part of a layer stands for, `[in, out]`."""
    codes = values(tensor(model, folder, base))
    if form == "split":
        return codes
    scale, zero = (values(tensor(model, folder, base + suffix)) for suffix in (".scale", ".zero_point"))
    if form == "qdq":
        return (codes.astype(np.float32) - zero) * scale
    rows, blocks, width = codes.shape
    code = kernels().unpack(codes.reshape(rows, -1), blocks * width * 2, 4).reshape(rows, blocks, -1)
    points = kernels().unpack(zero.reshape(rows, -1), blocks, 4)
    weights: F32 = (code.astype(np.float32) - points[:, :, None]) * scale.reshape(rows, blocks, 1)
    return weights.reshape(rows, -1).T


def weights(path: Path, layer: int) -> F32:
    """The float weights of a layer of `make`."""
    offset = layer * WIDTH * WIDTH * 4
    return np.fromfile(f"{path}.data", np.float32, WIDTH * WIDTH, offset=offset).reshape(WIDTH, WIDTH)


def layer_sqnr(source: Path, out: Path, layer: int, form: str, clusters: int) -> str:
    """The SQNR of one layer as it lies in the file; `exact` where every weight is the same."""
    model = onnx.load(out, load_external_data=False)
    wanted = weights(source, layer)
    got = sum(part(model, out.parent, f"l{layer}.weight.part{c}", form) for c in range(clusters))
    noise = float(np.square((wanted - got).astype(np.float64)).sum())
    return (
        "exact" if noise == 0 else f"{10 * math.log10(float(np.square(wanted.astype(np.float64)).sum()) / noise):.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--max-memory", default="512MB")
    parser.add_argument("--work", type=Path, help="where to put the files (default: a temporary folder)")
    parser.add_argument("--docs", action="store_true", help="write the section of docs/results/onnx.md")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        source, out = Path(name) / "model.onnx", Path(name) / "out" / "out.onnx"
        make(source, options.layers, WIDTH)
        total = Path(f"{source}.data").stat().st_size
        for form, clusters in (("split", 2), ("matmulnbits", 3), ("qdq", 3)):
            out.parent.mkdir()
            done = measure([sys.executable, "-c", JOB, str(source), str(out), form, str(clusters), options.max_memory])
            onnx.checker.check_model(out)
            data = Path(f"{out}.data").stat().st_size
            first, last = (layer_sqnr(source, out, layer, form, clusters) for layer in (0, options.layers - 1))
            ran = "not run"
            if data < RUNS_BELOW:
                found = session(out).run(None, {"x": np.ones((1, WIDTH), np.float32)})[0]
                ran = "finite" if np.isfinite(found).all() else "not finite"
            label = f"{form}, k={clusters}"
            rows.append(
                f"| {label} | {data / 1e9:.2f} | {done.cpu_seconds:.1f} | {done.peak_mib:.0f} | {first} | {last} | {ran} |"
            )
            shutil.rmtree(out.parent)
    text = "\n".join(
        [
            "## Beyond 2 GB",
            "",
            "Written by `python -m benchmarks.speed.onnx_over_2gb --docs`.",
            f"A model of {total / 1e9:.2f} GB with external data, INT4, under `max_memory` {parse_bytes(options.max_memory) >> 20} MiB. The layers are read back from the written files.",
            "",
            "| job | data written, GB | processor, s | peak MiB | first layer, dB | last layer, dB | output in ONNX Runtime |",
            "|---|---:|---:|---:|---:|---:|---|",
            *rows,
        ]
    )
    print(text)
    if options.docs:
        put("over 2 GB", text)


if __name__ == "__main__":
    main()
