"""Try an installed package as a user would: quantize a folder, verify it, turn it back; argument: the kernels expected."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from splitquant.checkpoint.safetensors import build_header


def main(expected_kernels: str) -> None:
    """Exit non-zero where anything is not as it should be."""
    program = Path(sys.executable).with_name("splitquant")
    version = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    assert f"({expected_kernels} kernels" in version, version
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, output, back = folder / "model", folder / "int4", folder / "float"
        source.mkdir()
        (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
        weights = np.random.default_rng(0).standard_normal((128, 256)).astype(np.float32)
        header, _ = build_header([("layers.0.up_proj.weight", "F32", weights.shape)], {"format": "pt"})
        (source / "model.safetensors").write_bytes(header + weights.tobytes())
        for command in (
            ["quantize", source, "-o", output],
            ["verify", source, output],
            ["inspect", output],
            ["report", source, output, "-o", folder / "report.html", "-q"],
            ["dequantize", output, "-o", back],
        ):
            subprocess.run([program, *command], check=True, stdout=subprocess.DEVNULL)
        assert "uPlot" in (folder / "report.html").read_text("utf-8")  # the page's own files were installed too
        assert (back / "model.safetensors").stat().st_size == (source / "model.safetensors").stat().st_size
    print(f"installed package works with {expected_kernels} kernels: {version.strip()}")  # noqa: T201 - CI reads it


if __name__ == "__main__":
    main(sys.argv[1])
