"""A run may be killed anywhere: the next one ends with the same bytes, and nothing lies beside the output.

SPLITQUANT_KILLS sets how many real kills there are (a few by default, since each is two processes).
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builders.folders import tiny_sharded, tree
from splitquant.api import dequantize, quantize
from splitquant.errors import DestinationError
from splitquant.storage import publish, workplace

KILLS = int(os.environ.get("SPLITQUANT_KILLS", "4"))
RUN = "import sys; from splitquant.api import quantize; quantize(sys.argv[1], sys.argv[2], force=True)"


class Killed(BaseException):
    """The end of a process, as far as its files can tell: no handler of ordinary errors runs."""


def steps(patch, last):
    """Let a run end before step `last` of giving names; returns the steps that were made."""
    made = []

    def step(original):
        def call(*args, **kwargs):
            if len(made) == last:
                raise Killed
            made.append(getattr(original, "__name__", "?"))
            return original(*args, **kwargs)

        return call

    original = workplace.Workplace.publish

    def publishing(self):
        patch.setattr(Path, "rename", step(Path.rename))
        patch.setattr(workplace, "exchange", step(workplace.exchange))
        patch.setattr(shutil, "rmtree", step(shutil.rmtree))
        patch.setattr(workplace, "sync", step(workplace.sync))
        patch.setattr(os, "unlink", step(os.unlink))
        original(self)

    patch.setattr(workplace.Workplace, "publish", publishing)
    return made


@pytest.fixture
def source(tmp_path):
    """A source of two shards."""
    return tiny_sharded(tmp_path / "m", parts=2, files={"tokenizer.json": "{}"})


def names(path):
    """What lies in a folder."""
    return sorted(p.name for p in path.iterdir())


@pytest.mark.parametrize("exchanged", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("old", [True, False], ids=["over an old model", "new"])
def test_killed_at_every_step_of_giving_names(tmp_path, source, monkeypatch, exchanged, old):
    """LAW: wherever it ends, the same command then makes the same bytes, and leaves nothing beside them."""
    if not exchanged:
        monkeypatch.setattr(workplace, "exchange", lambda *_: False)
    quantize(source, tmp_path / "clean")
    wanted = tree(tmp_path / "clean")
    for last in range(100):
        place = tmp_path / f"place{last}"
        place.mkdir()
        if old:
            (place / "q").mkdir()
            (place / "q/config.json").write_text('{"old": 1}')
        with pytest.MonkeyPatch.context() as patch:
            made = steps(patch, last)
            try:
                quantize(source, place / "q", force=old)
            except Killed:
                pass
            else:
                assert last == len(made) > 3
                assert names(place) == ["q"]
                break
        if old and exchanged:  # at no moment is there none
            assert (place / "q/config.json").is_file()
        try:
            quantize(source, place / "q", force=old)
        except DestinationError:  # exists: all was done but for the last of the state
            assert not old
        assert tree(place / "q") == wanted
        assert names(place) == ["q"]
    else:
        raise AssertionError("it never came to an end")


def test_an_old_model_comes_back_into_sight(tmp_path, source, monkeypatch):
    """Killed between two renames, the old model is there again when the next run begins, and is safe without --force."""
    monkeypatch.setattr(workplace, "exchange", lambda *_: False)
    (tmp_path / "q").mkdir()
    (tmp_path / "q/config.json").write_text('{"old": 1}')
    with pytest.MonkeyPatch.context() as patch:
        assert steps(patch, 2) == []
        with pytest.raises(Killed):
            quantize(source, tmp_path / "q", force=True)
    assert names(tmp_path) == [".q.partial", ".q.replaced", "m"]
    with pytest.raises(DestinationError, match="exists and is not empty"):
        quantize(source, tmp_path / "q")
    assert (tmp_path / "q/config.json").read_text() == '{"old": 1}'


def test_other_options_after_the_name_was_given(tmp_path, source):
    """A complete output of other options is an output like others: refused without --force."""
    with pytest.MonkeyPatch.context() as patch:
        made = steps(patch, 2)
        with pytest.raises(Killed):
            quantize(source, tmp_path / "q")
    assert made == ["rename", "sync"]
    assert (tmp_path / "q" / workplace.STATE).is_dir()
    with pytest.raises(DestinationError, match="exists and is not empty"):
        quantize(source, tmp_path / "q", preset="paper")
    assert not (tmp_path / "q" / workplace.STATE).exists()
    quantize(source, tmp_path / "clean")
    assert tree(tmp_path / "q") == tree(tmp_path / "clean")


def test_a_restored_folder_is_taken_up_as_well(tmp_path, source):
    quantize(source, tmp_path / "q")
    with pytest.MonkeyPatch.context() as patch:
        steps(patch, 1)
        with pytest.raises(Killed):
            dequantize(tmp_path / "q", tmp_path / "f")
    dequantize(tmp_path / "q", tmp_path / "f")
    dequantize(tmp_path / "q", tmp_path / "clean")
    assert tree(tmp_path / "f") == tree(tmp_path / "clean")


def test_kill(tmp_path, source):
    """Real processes, killed at random moments."""
    quantize(source, tmp_path / "clean")
    wanted = tree(tmp_path / "clean")
    command = [sys.executable, "-c", RUN, source, tmp_path / "place/q"]
    environment = {**os.environ, "PYTHONPATH": str(Path(publish.__file__).parents[2])}
    (tmp_path / "place").mkdir()
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True)
    usual = time.perf_counter() - started
    chance = random.Random(1)
    for _ in range(KILLS):
        process = subprocess.Popen(command, env=environment)
        time.sleep(usual * chance.uniform(0.3, 1.05))
        process.kill()
        process.wait(10)
        assert (tmp_path / "place/q/config.json").is_file()
        quantize(source, tmp_path / "place/q", force=True)
        assert tree(tmp_path / "place/q") == wanted
        assert names(tmp_path / "place") == ["q"]
