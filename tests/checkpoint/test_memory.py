"""Peak memory is bounded by what was asked for, whatever the size of the model."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import splitquant
from splitquant.checkpoint.safetensors import build_header
from splitquant.storage.memory import MIB

SRC = Path(splitquant.__file__).parents[1]
NATIVE = importlib.util.find_spec("splitquant._native") is not None
LIMIT = 256 * MIB

DRIVER = """
    import sys
    from splitquant import api
    from splitquant.storage.resources import peak_memory_bytes

    verb, source, destination = sys.argv[1:]
    if verb == "quantize":
        api.quantize(source, destination, max_memory="256MiB", threads=2)
    elif verb == "verify":
        api.verify(source, destination, max_memory="256MiB")
    else:
        api.dequantize(source, destination, max_memory="256MiB")
    print(peak_memory_bytes())
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """About 150 MB: one large matrix that has to be cut, a few middle ones, and a large kept table."""
    path = tmp_path_factory.mktemp("large")
    shapes = {
        "model.layers.0.mlp.up_proj.weight": (14_000, 3072),
        **{f"model.layers.{i}.self_attn.q_proj.weight": (2048, 1536) for i in range(6)},
        "model.position_embeddings.weight": (9000, 1536),
    }
    header, entries = build_header([(name, "BF16", shape) for name, shape in shapes.items()], {"format": "pt"})
    # A short run of random weights, over and over: writing is fast, and the histogram is that of a layer.
    values = np.random.default_rng(1).standard_normal(1 << 19, dtype=np.float32) * np.float32(0.02)
    block = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with (path / "model.safetensors").open("wb") as file:
        file.write(header)
        left = sum(entry.nbytes for entry in entries)
        assert left > 140_000_000
        while left:
            left -= file.write(block[: min(left, len(block))])
    return path


def peak(kernels, *args):
    """Peak memory of a verb in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(SRC), "SPLITQUANT_KERNELS": kernels}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DRIVER), *map(str, args)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.parametrize(
    "kernels",
    ["numpy", pytest.param("native", marks=pytest.mark.skipif(not NATIVE, reason="splitquant._native was not built"))],
)
def test_peak_memory_stays_under_the_bound(tmp_path, source, kernels):
    """Quantizing, verifying and dequantizing 150 MB stay under 256 MiB, with either kernels."""
    found = {"quantize": peak(kernels, "quantize", source, tmp_path / "q")}
    if kernels == "native" or not NATIVE:
        found["verify"] = peak(kernels, "verify", source, tmp_path / "q")
        found["dequantize"] = peak(kernels, "dequantize", tmp_path / "q", tmp_path / "f")
    assert max(found.values()) < LIMIT, {verb: f"{nbytes / MIB:.0f} MiB" for verb, nbytes in found.items()}
