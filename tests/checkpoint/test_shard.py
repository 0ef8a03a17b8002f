"""A shard is a job: it says all that it needs, and whoever runs it writes the same bytes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace

import pytest

from builders.commands import environment
from builders.expected_planes import tiny_windows
from builders.folders import normal, tiny_sharded, tree, write_folder
from splitquant.api import quantize
from splitquant.checkpoint import shard
from splitquant.checkpoint.shard import ShardJob, run_shard, shard_job
from splitquant.checkpoint.source import open_float_folder, plan_folder
from splitquant.core.spec import PAPER, QuantSpec
from splitquant.errors import SourceError, TensorError
from splitquant.plan.recipe import Recipe
from splitquant.storage.files import TargetFile
from splitquant.storage.memory import MIB, MemoryBudget

RUN = """
    import json, pickle, sys
    from splitquant.checkpoint.shard import run_shard

    with open(sys.argv[1], "rb") as file:
        jobs = pickle.load(file)
    told = []
    done = [[outcome.to_dict() for outcome in run_shard(job, told.append)] for job in jobs]
    print(json.dumps({"outcomes": done, "told": sum(told)}))
"""
RECIPES = {
    "default": Recipe(),
    "paper": Recipe(PAPER),
    "groups": Recipe(QuantSpec(3, 2, "residual", "group:16"), None, exclude=("*.down_proj.weight",)),
    "free levels": Recipe(QuantSpec(3, 1, "lloyd", "tensor")),
}


def jobs(source, place, recipe=RECIPES["default"], budget=MemoryBudget(1024 * MIB, 2)):  # noqa: B008 - a frozen value
    """The jobs of all shards of a folder, to files of the same names in another place."""
    folder = open_float_folder(source)
    plan = plan_folder(folder, recipe)
    place.mkdir()
    return [shard_job(folder, one, plan, place / one.name, budget) for one in folder.shards]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_another_process_writes_the_same(tmp_path, recipe):
    """LAW: a pickled job that another process runs gives the bytes and the outcomes of this one."""
    source = tiny_sharded(tmp_path / "m")
    here = [run_shard(job) for job in jobs(source, tmp_path / "here", recipe)]
    there = jobs(source, tmp_path / "there", recipe)
    (tmp_path / "jobs.pickle").write_bytes(pickle.dumps(there))
    command = [sys.executable, "-c", "\n".join(line.removeprefix("    ") for line in RUN.splitlines())]
    done = subprocess.run(
        [*command, str(tmp_path / "jobs.pickle")], env=environment(), capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["outcomes"] == [
        [json.loads(json.dumps(outcome.to_dict())) for outcome in outcomes] for outcomes in here
    ]
    assert found["told"] == pytest.approx(sum(one.source_bytes for outcomes in here for one in outcomes), abs=64)
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_shards_by_themselves_are_those_of_the_folder(tmp_path):
    """In any order, with any memory and any threads: the files that `quantize` writes."""
    source = tiny_sharded(tmp_path / "m")
    quantize(source, tmp_path / "q")
    for number, threads in enumerate((1, 3)):
        for job in reversed(jobs(source, tmp_path / str(number), budget=MemoryBudget(300 * MIB, threads))):
            run_shard(job)
        written = tree(tmp_path / "q")
        assert tree(tmp_path / str(number)) == {name: written[name] for name in tree(tmp_path / str(number))}


def test_a_job_comes_back_from_its_pickle(tmp_path):
    """A job is a frozen value of values; its size is known before it is run."""
    for job in jobs(tiny_sharded(tmp_path / "m"), tmp_path / "q"):
        again = pickle.loads(pickle.dumps(job))
        assert again == job
        assert {field.name for field in fields(ShardJob)} == {
            *("source", "target", "header", "places", "entries", "decisions", "budget")
        }
        run_shard(again)
        assert job.target.stat().st_size == job.nbytes


def test_a_job_names_its_file_in_errors(tmp_path):
    """What goes wrong in another process is as clear as it is here."""
    source = write_folder(tmp_path / "m", {"a.weight": normal(1, 64, 64)})
    (job,) = jobs(source, tmp_path / "q")
    with pytest.raises(SourceError, match=r"nowhere\.safetensors: cannot be opened"):
        run_shard(replace(job, source=source / "nowhere.safetensors"))
    bad = normal(1, 64, 64)
    bad[3, 3] = 0x7FC0
    (job,) = jobs(write_folder(tmp_path / "bad", {"a.weight": bad}), tmp_path / "q2")
    with pytest.raises(
        TensorError, match=r"bad/model\.safetensors: tensor 'a\.weight' holds NaN.*--exclude 'a\.weight'"
    ):
        run_shard(job)


@pytest.mark.parametrize("cut", [False, True])
def test_outcomes_come_in_the_order_of_the_shard(tmp_path, monkeypatch, cut):
    """Large tensors are written first, and reported where they stand."""
    if cut:
        tiny_windows(monkeypatch, 2000)
    for job in jobs(tiny_sharded(tmp_path / "m"), tmp_path / "q"):
        assert [outcome.name for outcome in run_shard(job)] == [entry.name for entry in job.entries]


def test_files_stay_open_as_long_as_threads_use_them(tmp_path, monkeypatch):
    """When one tensor fails, files are closed only after every thread has come to its end (descriptors are reused)."""
    source = write_folder(tmp_path / "m", {f"{i}.weight": normal(i, 64, 64) for i in range(4)})
    running, late = [], []
    begun = threading.Event()

    def transform(plan, *_):
        if plan.name == "0.weight":
            begun.wait(5)
            raise TensorError("holds NaN")
        running.append(plan.name)
        begun.set()
        time.sleep(0.2)
        running.remove(plan.name)

    def close(self):
        late.extend(running)
        original(self)

    original = TargetFile.close
    monkeypatch.setattr(shard, "transform_tensor", transform)
    monkeypatch.setattr(TargetFile, "close", close)
    (job,) = jobs(source, tmp_path / "q")
    with pytest.raises(TensorError):
        run_shard(job)
    assert late == []
