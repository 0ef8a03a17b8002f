"""The command line in the process of the tests."""

from __future__ import annotations

import sys

import pytest

from builders.commands import Done
from builders.folders import (
    tiny_folder,
)
from splitquant.cli import main


@pytest.fixture
def cli(monkeypatch, capsys):
    """The command line in this process."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["splitquant", *map(str, args)])
        capsys.readouterr()
        try:
            main.run()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture
def source(tmp_path):
    """A tiny float folder."""
    return tiny_folder(tmp_path / "m", files={"tokenizer.json": "{}"})
