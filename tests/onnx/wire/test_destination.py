"""The destination: complete or not there, whoever else writes there, and nothing removed that is not of the model."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

import splitquant.onnx as sqo
from builders.onnx_models import X, heavy, matmul, run, sqnr
from splitquant.errors import DestinationError


def source(folder, seed=0, *, external=True):
    path = folder / f"m{seed}.onnx"
    onnx.save(matmul(heavy((64, 48), seed)), path, save_as_external_data=external, size_threshold=0)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_concurrent_runs_to_one_place(tmp_path):
    """Of many runs to one destination, with and without external data, one wins whole: never a graph with another's data."""
    out = tmp_path / "out.onnx"
    sources = [source(tmp_path, seed, external=seed % 2 == 0) for seed in range(4)]
    wanted = [run(path, {"x": X})[0] for path in sources]
    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda path: sqo.split(path, out, force=True, threads=1), sources))
        got = run(out, {"x": X})[0]
        assert max(sqnr(one, got) for one in wanted) > 100
        assert not list(tmp_path.glob(".out*"))


def test_concurrent_processes(tmp_path):
    """The same with processes, of which some are killed: the next run cleans up after them."""
    out = tmp_path / "out.onnx"
    code = (
        "import sys, splitquant.onnx as sqo\n"
        "while True: sqo.quantize(sys.argv[1], sys.argv[2], force=True, threads=1, advance=lambda _: print(flush=True))"
    )
    paths = [source(tmp_path, seed) for seed in range(2)]
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(out)], stdout=subprocess.PIPE) for path in paths
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
    time.sleep(0.5)
    for process in started:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    sqo.split(paths[0], tmp_path / "out.onnx", force=True)
    assert not list(tmp_path.glob(".out*"))
    assert sqnr(run(paths[0], {"x": X})[0], run(out, {"x": X})[0]) > 100


def test_leftovers_of_dead_runs(tmp_path):
    """What a killed run left is removed; what a living one has, or anybody else, stays."""
    dead, living, foreign = "0123456789abcdef", "fedcba9876543210", "mine"
    for key in (dead, living, foreign):
        (tmp_path / f".out.onnx.{key}.partial").write_bytes(b"graph")
        (tmp_path / f".out.onnx.data.{key}.partial").write_bytes(b"data")
    (tmp_path / ".out.onnx.data.00000000ffffffff.partial").write_bytes(b"data of a run that ended while it cleaned up")
    (tmp_path / f".other.onnx.{dead}.partial").write_bytes(b"of another destination")
    with (tmp_path / f".out.onnx.{living}.partial").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        sqo.split(source(tmp_path), tmp_path / "out.onnx")
    assert [name for name in names(tmp_path) if name.startswith(".")] == [
        f".other.onnx.{dead}.partial",
        f".out.onnx.data.{living}.partial",
        f".out.onnx.data.{foreign}.partial",
        f".out.onnx.{living}.partial",
        f".out.onnx.{foreign}.partial",
    ]


def test_runs_killed_between_the_two_names(tmp_path):
    """Data that has its name already, of a run whose graph has not, goes with the graph."""
    sqo.split(source(tmp_path), tmp_path / "out.onnx")
    (tmp_path / "out.onnx").rename(tmp_path / ".out.onnx.0123456789abcdef.partial")
    sqo.split(source(tmp_path, 1), tmp_path / "out.onnx")
    assert not list(tmp_path.glob(".out*"))
    assert sqnr(run(tmp_path / "m1.onnx", {"x": X})[0], run(tmp_path / "out.onnx", {"x": X})[0]) > 100


@pytest.mark.parametrize("external", [False, True])
def test_force_keeps_data_that_is_not_of_the_replaced_model(tmp_path, external):
    """OUT.onnx.data of somebody else is never removed or overwritten."""
    out, data = tmp_path / "out.onnx", tmp_path / "out.onnx.data"
    data.write_bytes(b"precious")
    path = source(tmp_path, external=external)
    for before in (None, b"no model", matmul().SerializeToString()):
        if before is not None:
            out.write_bytes(before)
        if external:
            with pytest.raises(DestinationError, match=r"out.onnx.data: exists, and is no part of a model at"):
                sqo.split(path, out, force=True)
            assert not out.exists() if before is None else out.read_bytes() == before
        else:
            sqo.split(path, out, force=True)
            assert sqnr(run(path, {"x": X})[0], run(out, {"x": X})[0]) > 100
            out.unlink()
        assert data.read_bytes() == b"precious"


def test_force_replaces_the_data_of_the_replaced_model(tmp_path):
    """A model with external data gives way with its data, to one with and to one without."""
    out = tmp_path / "out.onnx"
    sqo.split(source(tmp_path, 0), out)
    sqo.split(source(tmp_path, 1), out, force=True)
    assert sqnr(run(tmp_path / "m1.onnx", {"x": X})[0], run(out, {"x": X})[0]) > 100
    sqo.split(source(tmp_path, 2, external=False), out, force=True)
    assert not (tmp_path / "out.onnx.data").exists()
    np.testing.assert_allclose(run(tmp_path / "m2.onnx", {"x": X})[0], run(out, {"x": X})[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_the_old_model_stays_where_names_cannot_be_given(tmp_path, monkeypatch, external, failing):
    """Whichever renaming fails under --force, the model that was to be replaced is there, whole, and nothing else is."""
    path, out = source(tmp_path, external=external), tmp_path / "out.onnx"
    sqo.split(source(tmp_path, 1, external=external), out)
    wanted, before = run(out, {"x": X})[0], names(tmp_path)
    replace, calls = type(out).replace, []

    def broken(self, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(type(out), "replace", broken)
    if failing > (4 if external else 1):
        return
    with pytest.raises(DestinationError, match="Input/output error"):
        sqo.split(path, out, force=True)
    np.testing.assert_array_equal(run(out, {"x": X})[0], wanted)
    assert names(tmp_path) == before


@pytest.mark.parametrize("graph_was_written", [False, True])
def test_what_a_killed_run_set_aside(tmp_path, graph_was_written):
    """A run killed while it replaces a model with external data: the next one puts the old back, or takes it away."""
    out, key = tmp_path / "out.onnx", "0123456789abcdef"
    sqo.split(source(tmp_path), out)
    wanted = run(out, {"x": X})[0]
    for name in ("out.onnx", "out.onnx.data"):
        (tmp_path / name).rename(tmp_path / f".{name}.{key}.old")
    (tmp_path / "new").mkdir()
    sqo.split(source(tmp_path, 1), tmp_path / "new" / out.name)
    (tmp_path / "new" / "out.onnx.data").rename(tmp_path / "out.onnx.data")
    (tmp_path / "new" / out.name).rename(out if graph_was_written else tmp_path / f".out.onnx.{key}.partial")
    with pytest.raises(DestinationError, match="exists"):
        sqo.split(source(tmp_path), out)
    assert np.array_equal(run(out, {"x": X})[0], wanted) is not graph_was_written
    sqo.split(source(tmp_path), out, force=True)
    np.testing.assert_array_equal(run(out, {"x": X})[0], wanted)
    assert not list(tmp_path.glob(".out*"))


def test_small_external_weights_leave_no_empty_data(tmp_path):
    """A model whose parts are all too small for external data comes as one file, again and again."""
    path, out = tmp_path / "small.onnx", tmp_path / "out.onnx"
    onnx.save(matmul(heavy((64, 4), 0)), path, save_as_external_data=True, size_threshold=0)
    for _ in range(2):
        sqo.quantize(path, out, force=True)
        assert names(tmp_path) == sorted({"out.onnx", *(name for name in names(tmp_path) if "out" not in name)})
