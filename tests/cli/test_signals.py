"""A run that is stopped from outside: the same care for every signal, one message, an exit code that tells which."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from builders.commands import wait_for
from builders.folders import tiny_sharded
from splitquant.cli.signals import Stopped, raise_on_signals

SLOW = """
import sys, time
from pathlib import Path
from splitquant.checkpoint import shard
original, marker = shard.transform_tensor, Path(sys.argv.pop())
def transform(*args):
    marker.touch()
    time.sleep(1)
    return original(*args)
shard.transform_tensor = transform

from splitquant.cli import start
start()
"""


FRESH = (
    "import signal; [signal.signal(n, signal.SIG_DFL) for n in (1, 15)]; signal.signal(2, signal.default_int_handler)\n"
)
"""As a terminal starts a command: a background job of a script ignores SIGINT, and its children inherit that."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_writing(tmp_path, number):
    source, marker = tiny_sharded(tmp_path / "m"), tmp_path / "marker"
    words = ["quantize", source, "-o", tmp_path / "q", marker]
    process = subprocess.Popen([sys.executable, "-c", FRESH + SLOW, *words], stderr=subprocess.PIPE, text=True)
    wait_for(marker, process)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert error.strip() == "error: interrupted; the same command takes up what is finished"
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_importing(tmp_path, number):
    """No traceback, however early it comes once the command's own code runs."""
    (tmp_path / "typer.py").write_text(
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'marker')!r}).touch()\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", FRESH + "from splitquant.cli import start; start()"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "marker", process)
    time.sleep(0.1)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (128 + number, "error: interrupted\n")


def test_what_is_ignored_stays_so():
    """nohup means it."""
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise_on_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Stopped) as found:
            os.kill(os.getpid(), signal.SIGTERM)
        assert found.value.exit_code == 143
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
