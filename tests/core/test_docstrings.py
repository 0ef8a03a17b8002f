"""Every public function of core says what its parameters are."""

import ast
import re
from pathlib import Path

import pytest

import splitquant.core

FILES = sorted(Path(splitquant.core.__path__[0]).glob("*.py"))


def undescribed(source):
    """Public functions of a source with a parameter that their docstring does not describe (twins have their protocol's)."""
    missing = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node)
        named = [arg.arg for arg in (*node.args.args, *node.args.kwonlyargs) if arg.arg not in ("self", "cls", "_")]
        described = re.findall(r"^    (\w+):", (text or "").partition("Args:")[2], re.MULTILINE)
        if text is not None and any(name not in described for name in named):
            missing.append(node.name)
    return missing


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_parameters_are_described(file):
    """By a section of arguments, in Google's form."""
    assert undescribed(file.read_text("utf-8")) == []


def test_the_check_can_fail():
    """A parameter without a word is found, a described one and a private function pass."""
    assert undescribed('def f(a):\n    """Do."""\n') == ["f"]
    assert undescribed('def f(a, *, b):\n    """Do.\n\n    Args:\n        a: it.\n    """\n') == ["f"]
    assert (
        undescribed('def f(a):\n    """Do.\n\n    Args:\n        a: it.\n    """\n\ndef _g(a):\n    """Do."""\n') == []
    )
