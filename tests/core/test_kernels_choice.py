"""Which kernels run: the compiled ones where they were built, or those that the environment names."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import splitquant

ROOT = str(Path(splitquant.__file__).parents[1])
BUILT = importlib.util.find_spec("splitquant._native") is not None
SHOW = "from splitquant.core.kernels import kernels; print(kernels().name)"
HIDE = "import sys; sys.modules['splitquant._native'] = None; "
needs_native = pytest.mark.skipif(not BUILT, reason="splitquant._native was not built")


def run(code, **environment):
    """Run code in a fresh interpreter that imports the same splitquant; returns (exit status, stdout, stderr)."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SPLITQUANT_")}
    path = os.pathsep.join(filter(None, [clean.get("PYTHONPATH"), ROOT]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.strip(), done.stderr


@needs_native
@pytest.mark.parametrize("environment", [{}, {"SPLITQUANT_KERNELS": "auto"}, {"SPLITQUANT_KERNELS": "native"}])
def test_compiled_kernels_run_where_they_are_built(environment):
    """By default, and when asked for, the compiled kernels are used."""
    assert run(SHOW, **environment)[:2] == (0, "native")


def test_numpy_kernels_on_demand():
    """SPLITQUANT_KERNELS=numpy uses the NumPy twin, compiled module or not."""
    assert run(SHOW, SPLITQUANT_KERNELS="numpy")[:2] == (0, "numpy")


def test_fallback_without_the_module():
    """An installation without the compiled module uses the NumPy twin."""
    assert run(HIDE + SHOW)[:2] == (0, "numpy")


def test_demanding_what_is_not_built_says_so():
    """SPLITQUANT_KERNELS=native without the module is an error that says what to do."""
    status, _, stderr = run(HIDE + SHOW, SPLITQUANT_KERNELS="native")
    assert status == 1
    assert "SpecError" in stderr
    assert "C++20 compiler" in stderr


def test_unknown_kernels_are_refused():
    """Another value of SPLITQUANT_KERNELS is an error that lists the choices."""
    status, _, stderr = run(SHOW, SPLITQUANT_KERNELS="bogus")
    assert status == 1
    assert "'auto', 'native' or 'numpy'" in stderr


@needs_native
def test_instruction_set_by_name():
    """SPLITQUANT_ISA names the instruction set, and baseline is on every machine."""
    show = SHOW + "; from splitquant import _native; print(_native.isa())"
    assert run(show, SPLITQUANT_ISA="baseline")[:2] == (0, "native\nbaseline")


@needs_native
def test_unknown_instruction_set_is_refused():
    """Another value of SPLITQUANT_ISA is an error that lists those of this machine, not a silent fallback."""
    status, _, stderr = run(SHOW, SPLITQUANT_ISA="abacus")
    assert status == 1
    assert "SpecError" in stderr
    assert "baseline" in stderr
