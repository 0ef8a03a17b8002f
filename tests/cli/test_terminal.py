"""Pipes, terminals and signals: plain text, colour, names of any kind, a clean end."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap

import pytest

from builders.commands import ESCAPE, environment, process, wait_for
from builders.folders import normal, tiny_folder, tiny_sharded, tree, write_folder
from splitquant import api

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-7](;[0-9;]*)?m|\x1b\[38;")


SLOW = """
    import signal, sys, threading
    from pathlib import Path
    from splitquant.checkpoint import shard
    from splitquant.cli import main

    marker = Path(sys.argv.pop(1))
    original = shard.transform_tensor
    done, interrupted = [], threading.Event()

    def interrupt(number, frame):
        interrupted.set()
        raise KeyboardInterrupt

    # Whoever started the tests may have had the signal ignored, and a child inherits that.
    signal.signal(signal.SIGINT, interrupt)

    def transform(plan, streams, pool):
        if len(done) > 6:
            marker.touch()
            interrupted.wait()
        done.append(plan.name)
        return original(plan, streams, pool)

    shard.transform_tensor = transform
    main.run()
"""


@pytest.mark.parametrize("width", ["40", None])
def test_output_to_a_pipe_is_plain(tmp_path, source, width):
    """Without a terminal there is no escape code, with any width and any wish for colours but FORCE_COLOR."""
    more = {"COLUMNS": width} if width else {}
    for args in (("quantize", source, "-o", tmp_path / "q", "-v"), ("quantize", source, "-o", tmp_path / "q")):
        done = process(*args, **more)
        assert ESCAPE not in done.out + done.err
        assert "\r" not in done.out + done.err


def on_terminal(*args, **more):
    """The output of a command whose standard output and error are a terminal."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "splitquant.cli.main", *map(str, args)]
    with subprocess.Popen(command, env=environment(**more), stdin=slave, stdout=slave, stderr=slave) as running:
        os.close(slave)
        text = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            text += piece
    os.close(master)
    return running.returncode, text.decode()


def test_colour_on_a_terminal_only_and_never_with_no_color(tmp_path, source):
    """On a terminal errors are red, and with NO_COLOR nothing has a colour."""
    code, text = on_terminal("inspect", tmp_path / "nowhere")
    assert code == 1
    assert COLOUR.search(text)
    code, text = on_terminal("inspect", tmp_path / "nowhere", NO_COLOR="1")
    assert code == 1
    assert ESCAPE not in text
    code, text = on_terminal("quantize", source, "-o", tmp_path / "q", NO_COLOR="1")
    assert code == 0
    assert not COLOUR.search(text)


@pytest.mark.parametrize("name", ["out[bold]", "out[red]x", "a [b] c", "[i]", "with space", "ümläut", ":key:"])
def test_brackets_in_paths_are_text(cli, tmp_path, source, name):
    """A path is shown as it is."""
    q, f = tmp_path / name, tmp_path / f"f{name}"
    done = cli("quantize", source, "-o", q)
    assert done.code == 0
    assert f"written to {q}; next: " in done.err
    done = cli("dequantize", q, "-o", f)
    assert done.code == 0
    assert f"written to {f}" in done.err


def test_closing_tag_in_a_path(cli, tmp_path, source):
    """A path that looks like a closing tag is no error."""
    done = cli("quantize", source, "-o", tmp_path / "x[" / "b]")  # the text is x[/b]
    assert done.code == 0
    assert "x[/b]" in done.err


def test_interrupt(tmp_path):
    """Ctrl-C is exit code 130 and one line that says what to do; the same command takes up finished shards."""
    source, q, marker = tiny_sharded(tmp_path / "m"), tmp_path / "q", tmp_path / "marker"
    args = ["quantize", str(source), "-o", str(q), "--threads", "1"]
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(marker), *args]
    with subprocess.Popen(
        command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        wait_for(marker, running)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=300)
    assert running.returncode == 130
    assert out == ""
    assert re.fullmatch("error: interrupted; the same command takes up .*\n", err)
    assert not q.exists()
    done = process(*args)
    assert done.code == 0
    assert "1 shards taken up" in done.err or "1 shard taken up" in done.err
    api.quantize(source, tmp_path / "clean")
    assert tree(q) == tree(tmp_path / "clean")


def test_closed_pipe_is_no_traceback(source):
    """A reader that goes away (`| head -1`) is no reason for a traceback."""
    command = f"{sys.executable} -m splitquant.cli.main inspect '{source}' --json - | head -c 1"
    done = subprocess.run(["bash", "-c", command], env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_what_a_terminal_would_obey_is_shown_as_text(cli, tmp_path):
    """Names of tensors and files come from strangers; escape sequences in them are shown, not obeyed."""
    name = "a\x1b[2J\x07.weight"
    source = write_folder(tmp_path / "m", {name: normal(1, 64, 64), "b.weight": normal(2, 64, 64)}, config={})
    for args in (("quantize", source, "-o", tmp_path / "q", "-v"), ("inspect", tmp_path / "q")):
        done = cli(*args)
        assert done.code == 0
        assert "\x1b" not in done.out + done.err
        assert r"a\x1b[2J\x07.weight" in done.out
    done = cli("quantize", source, "-o", tmp_path / "p", "--exclude", "\x1b[31m")
    assert done.code == 2
    assert "\x1b" not in done.err


def test_json_of_names_that_are_no_text(cli, tmp_path):
    """Bytes of file names that are no UTF-8 are escaped, as Python has them."""
    source = tiny_folder(tmp_path / os.fsdecode(b"m\xff"))
    done = cli("quantize", source, "-o", tmp_path / "q", "--json", tmp_path / "r.json")
    assert done.code == 0
    assert json.loads((tmp_path / "r.json").read_text())["run"]["source"].endswith("m\udcff")


def test_no_link_lies_in_wait_for_a_json_file(cli, tmp_path):
    """What grows beside it has a name that nobody can foresee."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".r.json.partial").symlink_to(tmp_path / "mine")
    source = tiny_folder(tmp_path / "m")
    assert cli("quantize", source, "-o", tmp_path / "q", "--json", tmp_path / "r.json").code == 0
    assert (tmp_path / "mine").read_text() == "mine"
    assert json.loads((tmp_path / "r.json").read_text())
