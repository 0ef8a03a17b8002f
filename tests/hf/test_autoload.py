"""A program that does not import splitquant loads our folders right, where it is installed; never with random weights in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

PROGRAM = """
import sys
import transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert "PackedWeight" in {type(module).__name__ for module in model.modules()}
"""
installed = pytest.mark.skipif(
    not any(point.name == "splitquant" for point in entry_points(group="torch.backends")),
    reason="splitquant runs from its sources here: PyTorch finds installed packages alone",
)


@installed
def test_a_program_that_does_not_know_us(llama, tmp_path):
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, llama.packed], env=environment, cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


@installed
def test_importing_torch_loads_no_framework_of_ours(tmp_path):
    """The package alone: neither NumPy kernels nor transformers are loaded for it."""
    program = "import sys, torch; assert 'splitquant' in sys.modules; assert 'transformers' not in sys.modules; assert 'splitquant.core' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
