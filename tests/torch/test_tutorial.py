"""The tutorial, docs/torch.md, is a program that runs, and prints what it says."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "torch.md"


def test_tutorial(tmp_path, monkeypatch, capsys):
    """Every block runs in order, in one namespace; a block whose packages are not installed is left out."""
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text()
    blocks = re.findall(r"(?:<!-- needs: (.*?) -->\n)?```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 8
    names = {}
    for needs, code in blocks:
        if all(find_spec(need) for need in needs.split(", ") if need):
            exec(compile(code, str(PAGE), "exec"), names)
    shown = re.search(r"```text\n(.*?)```", page, re.DOTALL)[1]
    assert [words(line) for line in capsys.readouterr().out.splitlines()][:5] == [
        words(line) for line in shown.splitlines()
    ]


def words(line):
    """A line without its decibels: random numbers may differ with the machine."""
    return re.sub(r"[\d.]+ dB", "dB", line)
