"""The command line in a process of its own, and what a command gave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import splitquant

SRC = Path(splitquant.__file__).parents[1]


ESCAPE = "\x1b"


class Done(NamedTuple):
    """What a command gave."""

    code: int
    out: str
    err: str


def environment(**more):
    """The environment of a command in a process of its own."""
    kept = {
        key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")
    }
    return {**kept, "PYTHONPATH": str(SRC), "TERM": "xterm-256color", **more}


def process(*args, **more):
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "splitquant.cli.main", *map(str, args)]
    done = subprocess.run(command, env=environment(**more), capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def wait_for(marker, process):
    """Wait until a process has made a file; on a busy machine that takes as long as it takes, but not for ever."""
    deadline = time.monotonic() + 300
    while not marker.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def refused(done, code, *says):
    """An expected error: its code, one line that begins with `error:`, nothing on standard output."""
    assert done.code == code, done
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    assert done.out == ""
    for text in says:
        assert text in done.err
