"""The arrows of the house: who may import whom, read from the sources; `python .ci/import_graph.py` prints them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("import_graph", ROOT / ".ci" / "import_graph.py")
import_graph = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(import_graph)

FRAMEWORKS = ("torch", "onnx", "onnxruntime", "transformers", "safetensors", "jax", "tensorflow", "sklearn", "scipy")

FLOOR = {"errors", "sizes", "version"}
PLANNED = {"core", "format", "plan", "report", *FLOOR}
ARROWS = {
    "errors": set(),
    "version": set(),
    "sizes": {"errors"},
    "core": {"errors", "_native"},
    "storage": {"core", *FLOOR},
    "format": {"core", *FLOOR},
    "plan": {"format", "core", *FLOOR},
    "report": {"plan", "format", "core", *FLOOR},
    "checkpoint": {"storage", *PLANNED},
    "torch": {"storage", *PLANNED},
    "onnx": {"storage", *PLANNED},
    "hf": {"checkpoint", "torch", "storage", *PLANNED},
    "evaluate": {"hf", "storage", "core", *FLOOR},
    "api": {"checkpoint", "onnx", "storage", *PLANNED},
    "cli": {"api", "evaluate", "onnx", "storage", *PLANNED},
    "__init__": {"api", "hf", *PLANNED},
}
PACKAGES = {
    "core": {"numpy"},
    "storage": {"numpy"},
    "format": {"numpy"},
    "plan": {"numpy"},
    "report": {"numpy"},
    "checkpoint": {"numpy"},
    "torch": {"numpy", "torch"},
    "onnx": {"numpy", "onnx", "onnxruntime", "google"},
    "hf": {"torch", "transformers", "safetensors"},
    "evaluate": {"numpy", "torch", "transformers", "onnxruntime", "lm_eval"},
    "cli": {"numpy", "typer", "rich", "matplotlib"},
}
SUBROOMS = {  # of onnx: below each, what it may import of the others
    "onnx.wire": {"onnx.dtypes"},
    "onnx.graph": {"onnx.wire", "onnx.dtypes"},
    "onnx.forms": {"onnx.graph", "onnx.wire", "onnx.dtypes"},
}
LIGHT = ("core", "storage", "format", "plan", "report", "checkpoint", "evaluate")  # import no framework


@pytest.fixture(scope="module")
def graph():
    """Which modules each module imports."""
    return import_graph.graph()


def test_rooms_import_only_what_is_below_them(graph):
    """Every room is known, and every arrow between rooms is one of those above."""
    found = import_graph.rooms(graph)
    assert set(found) == set(ARROWS)
    assert {name: others - ARROWS[name] for name, others in found.items() if others - ARROWS[name]} == {}


def test_nothing_goes_in_circles(graph):
    """No module reaches itself through others, even by imports inside of functions."""
    assert import_graph.circles(graph) == []


def test_rooms_import_only_their_packages():
    """Frameworks are imported where they are adapted, and nowhere else."""
    found = {}
    for name, file in import_graph.modules().items():
        room = import_graph.room(name)
        strange = import_graph.strangers(file.read_text("utf-8")) - PACKAGES.get(room, set())
        if strange:
            found[name] = strange
    assert found == {}


@pytest.mark.parametrize("subroom", SUBROOMS)
def test_onnx_has_rooms_too(graph, subroom):
    """Of the rooms inside of onnx, lower ones do not know the higher ones."""
    allowed = {subroom, *SUBROOMS[subroom]}
    for name, others in graph.items():
        if name.startswith(f"{subroom}."):
            inner = {other for other in others if other.startswith("onnx")}
            assert {
                other for other in inner if not any(f"{other}.".startswith(f"{good}.") for good in allowed)
            } == set()


def loaded_after(statement):
    """The frameworks that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps([n for n in {FRAMEWORKS!r} if n in sys.modules]))"
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def test_light_rooms_load_no_framework():
    """A fresh interpreter that imports every module of the light rooms has loaded no framework."""
    names = [name for name in import_graph.modules() if import_graph.room(name) in LIGHT]
    light = [f"splitquant.{name}" for name in names if name != "core.native"]
    assert len(light) >= 50
    assert loaded_after("import " + ", ".join(light)) == []


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


@pytest.mark.parametrize(
    ("source", "own", "strange"),
    [
        ("import torch", set(), {"torch"}),
        ("def f():\n    import torch.nn as nn", set(), {"torch"}),
        ("from transformers import AutoModel", set(), {"transformers"}),
        ("import os, numpy, onnx", set(), {"numpy", "onnx"}),
        ("from splitquant.plan.plan import Plan", {"plan.plan"}, set()),
        ("from splitquant import api", {"api"}, set()),
        ("from splitquant import quantize", {""}, set()),
        ("import splitquant.plan.plan", {"plan.plan"}, set()),
        ("import splitquant.core.spec, json", {"core.spec"}, set()),
        ("from ..plan import decide", set(), {"..plan"}),
        ("from . import rows", set(), {"."}),
    ],
)
def test_the_source_check_can_fail(source, own, strange):
    """The check sees imports of every form; relative ones, which nobody uses here, are refused."""
    known = {"plan.plan": 1, "api": 1, "core.spec": 1, "plan": 1, "": 1}
    assert import_graph.own_imports(source, known) == own
    assert import_graph.strangers(source) == strange


def test_circles_are_found():
    """A circle of any length is one group; a chain is none."""
    assert import_graph.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert import_graph.circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
