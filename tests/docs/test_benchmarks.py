"""Benchmarks import what is there, also where they do it late: a module that moved is found before somebody runs them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
OWN = {file.stem for file in BENCHMARKS}


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_benchmarks_import_one_another_by_their_places(file):
    """`import minilm` works only from inside its folder; `from benchmarks.quality import minilm` everywhere."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            assert name.split(".")[0] not in OWN, f"line {node.lineno}: {name}"
            if name.startswith("benchmarks."):
                place = ROOT / name.replace(".", "/")
                assert place.is_dir() or place.with_suffix(".py").is_file(), f"line {node.lineno}: {name}"
