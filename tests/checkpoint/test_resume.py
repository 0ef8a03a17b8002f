"""An interrupted run is taken up where it stopped, if it is the same run, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from builders.commands import wait_for
from builders.folders import CONFIG, normal, read_folder, tiny_sharded, tree, write_sharded
from splitquant.api import dequantize, quantize
from splitquant.checkpoint import convert, restore
from splitquant.core.spec import PAPER, QuantSpec
from splitquant.errors import DestinationError

SRC = Path(convert.__file__).parents[2]

SLOW = """
    import sys, time
    from pathlib import Path
    from splitquant.api import quantize
    from splitquant.checkpoint import shard
    from splitquant.checkpoint.folder import open_folder

    source, destination, marker = map(Path, sys.argv[1:])
    original = shard.transform_tensor
    names = {entry.name for entry in open_folder(source).shards[0].entries}

    def transform(plan, streams, pool):
        if plan.name not in names:
            marker.touch()
            time.sleep(600)
        return original(plan, streams, pool)

    shard.transform_tensor = transform
    quantize(source, destination)
"""


@pytest.fixture
def source(tmp_path):
    """A source of three shards."""
    return tiny_sharded(tmp_path / "m", files={"tokenizer.json": "{}"})


def start_slow(tmp_path, source):
    """A run in a process of its own that has finished one shard and hangs in the second."""
    driver = tmp_path / "driver.py"
    driver.write_text(textwrap.dedent(SLOW))
    marker = tmp_path / "marker"
    process = subprocess.Popen(
        [sys.executable, driver, source, tmp_path / "q", marker], env={**os.environ, "PYTHONPATH": str(SRC)}
    )
    wait_for(marker, process)
    return process


def interrupt_after(monkeypatch, shards, error=KeyboardInterrupt, module=convert):
    """Let a run in this process stop when so many shards are finished; gives the context to leave."""
    original = module.Workplace.finish

    def finish(self, shard, *args):
        original(self, shard, *args)
        if len(list(self.path.glob("*.safetensors"))) >= shards:
            raise error

    monkeypatch.setattr(module.Workplace, "finish", finish)


def interrupted(tmp_path, source, shards=1, **options):
    """Begin a run to `q` and stop it when so many shards are finished."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, shards)
        with pytest.raises(KeyboardInterrupt):
            quantize(source, tmp_path / "q", **options)
    assert not (tmp_path / "q").exists()
    assert len(list((tmp_path / ".q.partial").glob("*.safetensors"))) == shards


def clean(tmp_path, source, *args, **options):
    """The files of the same run without an interruption."""
    quantize(source, tmp_path / "clean", *args, **options)
    return tree(tmp_path / "clean")


def test_killed_run_is_taken_up(tmp_path, source):
    """A run that was killed with SIGKILL is taken up: same bytes, and the report says so."""
    process = start_slow(tmp_path, source)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert not (tmp_path / "q").exists()
    report = quantize(source, tmp_path / "q")
    assert report.run.resumed_shards == 1
    assert tree(tmp_path / "q") == clean(tmp_path, source)
    assert not (tmp_path / ".q.partial").exists()


@pytest.mark.parametrize("strategy", ["magnitude", "residual", "lloyd"])
def test_every_strategy_is_taken_up(tmp_path, source, strategy):
    """An interrupted run ends with the same bytes, whatever planes it writes."""
    spec = QuantSpec(3, 2, strategy)
    interrupted(tmp_path, source, spec=spec)
    assert quantize(source, tmp_path / "q", spec).run.resumed_shards == 1
    assert tree(tmp_path / "q") == clean(tmp_path, source, spec)


def test_second_process_is_refused(tmp_path, source):
    """While a process writes, another is refused; when the first is gone, the lock is gone with it."""
    process = start_slow(tmp_path, source)
    try:
        with pytest.raises(DestinationError, match="another run is writing it at this moment"):
            quantize(source, tmp_path / "q")
        assert (tmp_path / ".q.partial").is_dir()
    finally:
        process.kill()
        process.wait(10)
    quantize(source, tmp_path / "q")


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_interrupt_keeps_finished_shards(tmp_path, source, shards):
    """Finished shards of an interrupted run are not made again."""
    interrupted(tmp_path, source, shards)
    told = []
    report = quantize(source, tmp_path / "q", advance=told.append)
    assert report.run.resumed_shards == shards
    assert sum(told) == pytest.approx(report.source_bytes, abs=64)
    assert tree(tmp_path / "q") == clean(tmp_path, source)


def test_report_of_a_resumed_run_is_whole(tmp_path, source):
    """The report of a resumed run is that of an uninterrupted one, tensor by tensor."""
    interrupted(tmp_path, source, 2)
    resumed, whole = quantize(source, tmp_path / "q"), quantize(source, tmp_path / "whole")
    assert resumed.outcomes == whole.outcomes


def test_threads_and_memory_do_not_matter(tmp_path, source):
    """Options that do not change the bytes do not hinder taking up."""
    interrupted(tmp_path, source, threads=1)
    assert quantize(source, tmp_path / "q", threads=2, max_memory="2GiB").run.resumed_shards == 1


@pytest.mark.parametrize(
    "options",
    [
        {"spec": PAPER},
        {"embeddings": "keep"},
        {"embeddings": 4},
        {"exclude": ["*.down_proj.weight"]},
        {"spec": QuantSpec(bits=5)},
    ],
    ids=["spec", "embeddings kept", "embedding bits", "exclude", "bits"],
)
def test_other_options_start_clean(tmp_path, source, options):
    """A run with other options takes nothing up."""
    interrupted(tmp_path, source)
    assert quantize(source, tmp_path / "q", **options).run.resumed_shards == 0
    assert tree(tmp_path / "q") == clean(tmp_path, source, **options)


@pytest.mark.parametrize("change", ["bytes", "time"])
def test_changed_source_starts_clean(tmp_path, source, change):
    """A source that was changed in between is read anew."""
    interrupted(tmp_path, source)
    if change == "time":
        os.utime(source / "model-00003-of-00003.safetensors")
    else:
        source = tiny_sharded(source, seed=77)
    assert quantize(source, tmp_path / "q").run.resumed_shards == 0
    assert tree(tmp_path / "q") == {**clean(tmp_path, source)}


def test_changed_model_type_starts_clean(tmp_path):
    """config.json decides about axes; where it changed so that a finished tensor would be cut otherwise, nothing is taken up."""
    shards = [{"h.0.attn.c_attn.weight": normal(1, 64, 64)}, {"b.weight": normal(2, 64, 64)}]
    source = write_sharded(tmp_path / "m", shards, config=CONFIG)
    interrupted(tmp_path, source)
    (source / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert quantize(source, tmp_path / "q").run.resumed_shards == 0
    assert tree(tmp_path / "q") == clean(tmp_path, source)


def test_changed_small_files_are_taken_anew(tmp_path, source):
    """Small files are always those of the source as it is at the end."""
    interrupted(tmp_path, source, 3)
    (source / "tokenizer.json").write_text('{"new": 1}')
    quantize(source, tmp_path / "q")
    assert (tmp_path / "q/tokenizer.json").read_text() == '{"new": 1}'
    assert tree(tmp_path / "q") == clean(tmp_path, source)


@pytest.mark.parametrize(
    "damage", ["state is empty", "state is no list", "shard is gone", "shard is short", "a bit is off", "name"]
)
def test_damaged_workplace_is_not_trusted(tmp_path, source, damage):
    """What a crash of the machine may leave (no state, half a state, half a shard) is made again."""
    interrupted(tmp_path, source)
    name = "model-00001-of-00003.safetensors"
    state, shard = tmp_path / f".q.partial/.splitquant/{name}.json", tmp_path / f".q.partial/{name}"
    if damage == "state is empty":
        state.write_text("")
    elif damage == "state is no list":
        state.write_text("null")
    elif damage == "shard is gone":
        shard.unlink()
    elif damage == "a bit is off":
        data = bytearray(shard.read_bytes())
        data[-1] ^= 4
        shard.write_bytes(data)
    elif damage == "name":
        shard.write_bytes(shard.read_bytes().replace(b"weight", b"Weight"))
    else:
        shard.write_bytes(shard.read_bytes()[:-1])
    assert quantize(source, tmp_path / "q").run.resumed_shards == 0
    assert tree(tmp_path / "q") == clean(tmp_path, source)


def test_foreign_files_in_the_way_are_left_alone(tmp_path, source):
    """A folder under the workplace's name that is not from here is neither emptied nor published."""
    (tmp_path / ".q.partial/sub").mkdir(parents=True)
    (tmp_path / ".q.partial/sub/x").write_text("x")
    with pytest.raises(DestinationError, match="holds files that are not from here"):
        quantize(source, tmp_path / "q")
    assert (tmp_path / ".q.partial/sub/x").read_text() == "x"
    assert not (tmp_path / "q").exists()


def test_leftovers_of_an_interrupted_end_do_not_get_into_the_output(tmp_path, source):
    """A run that was stopped among the small files leaves none of them to a run after it whose source has them no more."""
    with pytest.MonkeyPatch.context() as patch:

        def publish(_):
            raise KeyboardInterrupt

        patch.setattr(convert.Workplace, "publish", publish)
        with pytest.raises(KeyboardInterrupt):
            quantize(source, tmp_path / "q")
    (source / "tokenizer.json").unlink()
    report = quantize(source, tmp_path / "q")
    assert report.run.resumed_shards == 3
    assert tree(tmp_path / "q") == clean(tmp_path, source)


def test_failure_leaves_nothing_to_take_up(tmp_path, source, monkeypatch):
    """A run that fails (and is not interrupted) removes its workplace."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2, RuntimeError)
        with pytest.raises(RuntimeError):
            quantize(source, tmp_path / "q")
    assert not (tmp_path / ".q.partial").exists()


def test_dequantize_is_taken_up_too(tmp_path, source):
    """Dequantizing takes up its finished shards, and a workplace of quantizing is not taken for one of dequantizing."""
    quantize(source, tmp_path / "p")
    interrupted(tmp_path, source)
    dequantize(tmp_path / "p", tmp_path / "f")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 2, module=restore)
        with pytest.raises(KeyboardInterrupt):
            dequantize(tmp_path / "p", tmp_path / "q")
    told = []
    dequantize(tmp_path / "p", tmp_path / "q", advance=told.append)
    assert tree(tmp_path / "q") == tree(tmp_path / "f")
    assert sum(told) == sum(len(tensor.data) for tensor in read_folder(tmp_path / "q").values())


def test_another_source_with_the_same_times_starts_clean(tmp_path, source):
    """A copy that was given the times of another model is another model: none of its shards are mixed."""
    other = tiny_sharded(tmp_path / "other", seed=9)
    for mine, theirs in zip(sorted(source.glob("*.safetensors")), sorted(other.glob("*.safetensors")), strict=True):
        stat = mine.stat()
        os.utime(theirs, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    interrupted(tmp_path, source, 2)
    report = quantize(other, tmp_path / "q")
    assert report.run.resumed_shards == 0
    assert tree(tmp_path / "q") == clean(tmp_path, other)


def test_a_copy_of_the_source_goes_on(tmp_path, source):
    """Nothing that decides is about a disk or a machine: a copy that kept its times takes up what the original began."""
    interrupted(tmp_path, source, 2)
    copy = shutil.copytree(source, tmp_path / "elsewhere" / "m")
    assert quantize(copy, tmp_path / "q").run.resumed_shards == 2
    assert tree(tmp_path / "q") == clean(tmp_path, source)
