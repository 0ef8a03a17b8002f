"""What the core and the plan may import: NumPy and the standard library, checked in the source and in an interpreter."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import splitquant.core
import splitquant.plan

FRAMEWORKS = ("torch", "onnx", "onnxruntime", "transformers", "safetensors", "jax", "tensorflow", "sklearn", "scipy")
CORE = Path(splitquant.core.__path__[0])
PLAN = Path(splitquant.plan.__path__[0])
ALLOWED = {
    CORE: {"numpy", "splitquant.core", "splitquant.errors", "splitquant._native"},
    PLAN: {"numpy", "splitquant.core", "splitquant.format", "splitquant.plan", "splitquant.errors"},
}
FILES = sorted((folder, file) for folder in ALLOWED for file in folder.rglob("*.py"))


def imported_modules(source, package):
    """The full names of all modules that a source imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "splitquant":
                names |= {f"splitquant.{alias.name}" for alias in node.names}
            else:
                names.add(module)
    return names


def strangers(names, allowed):
    """The modules among `names` that are neither allowed nor of the standard library."""
    return {
        name
        for name in names
        if name.split(".")[0] not in sys.stdlib_module_names
        and not any(name == good or name.startswith(good + ".") for good in allowed)
    }


def loaded_after(statement):
    """The frameworks that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps([n for n in {FRAMEWORKS!r} if n in sys.modules]))"
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def modules_of(folder, package):
    """The dotted names of all modules in a folder that import without an optional part."""
    names = (f"{package}.{file.stem}" for file in sorted(folder.glob("*.py")))
    return [name for name in names if not name.endswith((".__init__", ".native"))]


def test_importing_core_and_plan_loads_no_framework():
    """A fresh interpreter that imports every core and plan module has loaded no framework."""
    modules = modules_of(CORE, "splitquant.core") + modules_of(PLAN, "splitquant.plan")
    assert len(modules) >= 12
    assert loaded_after("import " + ", ".join(modules)) == []


def test_quantizing_loads_no_framework():
    """Neither does quantizing and reading back an array."""
    work = (
        "import numpy as np; from splitquant.core.split import quantize_array; from splitquant.core.spec import QuantSpec; "
        "quantize_array(np.eye(9, dtype=np.float32), QuantSpec()).dequantize()"
    )
    assert loaded_after(work) == []


def test_the_fresh_interpreter_check_can_fail():
    """The check sees a framework that is there."""
    pytest.importorskip("safetensors")
    assert loaded_after("import safetensors") == ["safetensors"]


@pytest.mark.parametrize(("folder", "file"), FILES, ids=lambda path: path.name)
def test_sources_import_only_what_is_below_them(folder, file):
    """Arrows point down: core imports NumPy, itself and the errors; plan adds itself."""
    package = f"splitquant.{folder.name}"
    assert strangers(imported_modules(file.read_text("utf-8"), package), ALLOWED[folder]) == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch", {"torch"}),
        ("def f():\n    import torch.nn as nn", {"torch.nn"}),
        ("from transformers import AutoModel", {"transformers"}),
        ("import os, numpy, onnx", {"onnx"}),
        ("from splitquant.plan.plan import Plan", {"splitquant.plan.plan"}),
        ("from splitquant import api", {"splitquant.api"}),
        ("from ..plan import roles", {"splitquant.plan"}),
        ("import splitquant.corelike", {"splitquant.corelike"}),
        ("import numpy.typing\nfrom splitquant.core.spec import QuantSpec\nfrom . import rows\nimport json", set()),
    ],
)
def test_the_source_check_can_fail(source, found):
    """The check sees imports of every form, and lets the allowed ones pass."""
    assert strangers(imported_modules(source, "splitquant.core"), ALLOWED[CORE]) == found
