"""A size in, a folder out: never over, as close as one tensor allows, the same for everyone."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from folders import CONFIG, normal, split_up, tiny_folder, tiny_sharded, tiny_tensors, tree, write_folder, write_sharded
from splitquant.api import dry_run, quantize, verify
from splitquant.checkpoint.convert import apply_plan
from splitquant.checkpoint.planner import KEPT, Frontier, Goal, measure_frontier, read_plan
from splitquant.checkpoint.size import folder_bytes, side_bytes
from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.plan import Plan, Recipe
from splitquant.plan.saved import plan_to_dict
from splitquant.storage.json_file import read_edited_json
from splitquant.storage.resources import Resources

BITS = Goal(bits=4.0)


def frontier(source, goal=BITS, recipe=None, threads=1) -> Frontier:
    """The frontier of a folder."""
    return measure_frontier(source, recipe or Recipe(), goal, Resources(threads=threads))


def all_bytes(folder):
    """The size of every file of a folder."""
    return sum(len(data) for data in tree(folder).values())


def middling(path):
    """A model of different sizes and distributions, in two shards, with a card and other files."""
    chance = np.random.default_rng(5)
    tensors = {
        "model.embed_tokens.weight": normal(1, 300, 96),
        **{f"model.layers.{i}.up_proj.weight": normal(i, 256, 96) for i in range(2)},
        "model.layers.3.up_proj.weight": chance.standard_t(2, (256, 96)).astype(np.float16),
        "model.layers.4.up_proj.weight": (chance.standard_normal((64, 192)) * 5).astype(np.float32),
        "model.norm.weight": normal(9, 96),
    }
    files = {"README.md": "---\nlicense: mit\n---\n# Ä model\n", "tokenizer.json": "{}", "deep/er/file.txt": "x"}
    return write_sharded(path, split_up(tensors, 2), config=CONFIG, files=files)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of `middling`."""
    return middling(tmp_path_factory.mktemp("source") / "m")


@pytest.fixture(scope="module")
def found(source):
    """Its frontier."""
    return frontier(source)


@pytest.mark.parametrize("make", [tiny_folder, tiny_sharded], ids=lambda make: make.__name__)
def test_no_small_folder_is_over_its_size(tmp_path, make):
    sweep(frontier(make(tmp_path / "m")), tmp_path / "q")


def test_no_folder_is_over_its_size(tmp_path, found):
    sweep(found, tmp_path / "q")


def sweep(found, place):
    """Write folders of many sizes."""
    smallest = found.marks()[0].folder_bytes
    largest = found.marks()[-1].folder_bytes
    for number in range(9):
        nbytes = smallest + (largest - smallest) * number // 8 + number % 3
        choice = found.for_size(nbytes)
        apply_plan(found.folder, choice.plan, place, Resources(force=True))
        written = all_bytes(place)
        assert written <= choice.folder_bytes <= nbytes
        # Figures in report and card are counted at their longest: some letters for each tensor and row.
        assert choice.folder_bytes - written < 60 * len(choice.plan.tensors) + 400


def test_as_close_as_one_tensor_allows(found):
    """No change of one tensor that lowers the error fits; of the tables a change may still move some hundred bytes."""
    nbytes = 90_000
    choice = found.for_size(nbytes)
    room = nbytes - choice.folder_bytes
    specs = {tensor.name: tensor.spec for tensor in choice.plan.tensors}
    for option in found.options:
        now = option.specs.index(specs[option.tensor.name])
        for spec, noise in zip(option.specs, option.noise, strict=True):
            if noise < option.noise[now]:
                assert option.nbytes(spec) - option.nbytes(option.specs[now]) > room - 2000


def test_the_smallest_size_is_named_and_possible(tmp_path, source):
    with pytest.raises(SpecError, match="the smallest plan makes a folder of") as error:
        quantize(source, tmp_path / "q", target_size=1000)
    nbytes = int(re.search(r"folder of (\d+) bytes", str(error.value))[1])
    assert not (tmp_path / "q").exists()
    quantize(source, tmp_path / "q", target_size=nbytes)
    assert all_bytes(tmp_path / "q") <= nbytes
    with pytest.raises(SpecError, match="the smallest plan makes a folder of"):
        quantize(source, tmp_path / "q2", target_size=nbytes - 1)


def test_the_smallest_bits_are_named_and_possible(source):
    with pytest.raises(SpecError, match="the smallest possible here is") as error:
        dry_run(source, target_bits=1.5)
    bits = float(re.search(r"here is ([\d.]+) stored", str(error.value))[1])
    plan = dry_run(source, target_bits=bits)
    assert {tensor.spec.bits for tensor in plan.quantized} == {2}


@pytest.mark.parametrize("bits", [2.5, 3.3, 4.5, 6.0])
def test_bits_per_weight(tmp_path, bits, source):
    report = quantize(source, tmp_path / "q", target_bits=bits)
    chosen = [tensor for tensor in report.tensors if tensor.role in ("linear", "embedding")]
    stored = 8 * sum(tensor.stored_bytes for tensor in chosen) / sum(tensor.weights for tensor in chosen)
    assert bits - 0.2 < stored <= bits
    verify(source, tmp_path / "q")


def test_measured_figures_are_those_of_the_run(tmp_path, source, found):
    choice = found.for_goal(BITS)
    report = quantize(source, tmp_path / "q", target_bits=4.0)
    assert report.figures.noise == pytest.approx(choice.figures.noise, rel=1e-12)
    assert report.figures.sqnr_db == pytest.approx(choice.figures.sqnr_db, abs=1e-9)


def test_more_bytes_never_more_noise(found):
    noise = [found.for_size(nbytes).figures.noise for nbytes in range(60_000, 150_000, 5_000)]
    assert noise == sorted(noise, reverse=True)


def test_more_bytes_never_more_noise_to_the_byte(tmp_path):
    """What plans say of tensors grows with them; small folders are mostly that."""
    found = frontier(tiny_folder(tmp_path / "m"))
    noise = [found.for_size(nbytes).figures.noise for nbytes in range(30_000, 60_000, 499)]
    assert noise == sorted(noise, reverse=True)


def test_better_than_the_same_spec_everywhere(tmp_path, source, found):
    for spec in (QuantSpec(4, 1), QuantSpec(4, 1, granularity="group:32"), QuantSpec(3, 1, "lloyd"), QuantSpec(5)):
        report = quantize(source, tmp_path / "q", spec, embeddings=QuantSpec(4, 1), force=True)
        choice = found.at(sum(tensor.stored_bytes for tensor in report.quantized))
        assert choice.figures.noise <= report.figures.noise * (1 + 1e-12)


def test_same_plan_whatever_the_threads(tmp_path):
    source = tiny_sharded(tmp_path / "m")
    assert frontier(source).for_goal(BITS) == frontier(source, threads=3).for_goal(BITS)


def test_a_run_is_taken_up_and_gives_the_same_bytes(tmp_path):
    source = tiny_sharded(tmp_path / "m")
    quantize(source, tmp_path / "a", target_bits=4.0, threads=1)
    quantize(source, tmp_path / "b", target_bits=4.0, threads=3)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_saved_plan_gives_the_same_bytes(tmp_path):
    source = tiny_sharded(tmp_path / "m")
    plan = dry_run(source, target_bits=4.5)
    (tmp_path / "plan.json").write_text(json.dumps(plan_to_dict(plan)))
    quantize(source, tmp_path / "a", target_bits=4.5)
    quantize(source, tmp_path / "b", plan=tmp_path / "plan.json")
    a, b = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert {name for name in a if a[name] != b[name]} <= {"README.md", "splitquant_report.json"}  # reasons of kept ones
    assert [t.spec for t in read_plan(source, tmp_path / "plan.json")[1].tensors] == [t.spec for t in plan.tensors]


def test_a_large_budget_keeps_tensors(source):
    plan = dry_run(source, target_bits=12)
    kept = [tensor for tensor in plan.tensors if tensor.reason == KEPT]
    assert kept
    assert all(tensor.stored_bytes == tensor.nbytes for tensor in kept)
    plan = dry_run(source, target_bits=12, include="model.layers.*.weight")
    assert not [t for t in plan.tensors if t.reason == KEPT and t.name.startswith("model.layers")]


def test_what_is_said_of_embeddings_holds(source):

    def spec_of(**options):
        plan = dry_run(source, target_bits=4.0, **options)
        return next(tensor.spec for tensor in plan.tensors if tensor.role.kind == "embedding")

    assert spec_of(embeddings=6) == QuantSpec(6, 1, symmetric=True)
    assert spec_of(embeddings="keep") is None
    assert spec_of().clusters == 1


def test_fixed_and_target(source):

    def linear(**options):
        return [t.spec for t in dry_run(source, **options).quantized if t.role.kind == "linear"]

    assert {spec.granularity.kind for spec in linear(target_bits=5, fixed={"granularity": "tensor"})} == {"tensor"}
    assert {spec.bits for spec in linear(target_bits=4.5, fixed={"bits": 4})} == {4}
    goal = Goal(bits=5, target="linear-sym")
    specs = [t.spec for t in frontier(source, goal).for_goal(goal).plan.quantized]
    assert all(spec.symmetric for spec in specs)


def test_side_bytes_are_what_a_tensor_adds_to_a_folder(found):
    """But for what tensors share, and some digits."""
    plan = found.for_goal(BITS).plan
    for number, tensor in enumerate(plan.tensors):
        if tensor.spec is None:
            continue
        kept = replace(tensor, spec=None, reason=KEPT)
        other = Plan((*plan.tensors[:number], kept, *plan.tensors[number + 1 :]))
        less = folder_bytes(found.folder, plan) - folder_bytes(found.folder, other)
        side = side_bytes(found.folder, tensor) - side_bytes(found.folder, kept)
        assert side > 300
        assert abs(less - side - (tensor.stored_bytes - tensor.nbytes)) < 400


def test_symmetric_is_of_embeddings_too(source):
    specs = [tensor.spec for tensor in dry_run(source, target_bits=6, fixed={"symmetric": True}).quantized]
    assert specs
    assert all(spec.symmetric for spec in specs)


def test_weighting_moves_bits(tmp_path, source):
    name = "model.layers.0.up_proj.weight"

    def bits(weighting):
        plan = dry_run(source, target_bits=4.0, weighting=weighting)
        tensor = next(tensor for tensor in plan.tensors if tensor.name == name)
        return 8 * tensor.stored_bytes / tensor.weights

    assert bits({name: 0}) < bits("energy") < bits("relative") <= bits({name: 1e9})
    (tmp_path / "w.json").write_text(json.dumps({name: 0}))
    assert bits(str(tmp_path / "w.json")) == bits({name: 0})


def test_marks_rise(found):
    marks = found.marks()
    assert 8 <= len(marks) <= 16
    for smaller, larger in pairwise(marks):
        assert smaller.tensor_bytes < larger.tensor_bytes
        assert smaller.figures.noise > larger.figures.noise


def test_folder_bytes_of_a_usual_plan(tmp_path, source, found):
    """The count is right for plans of any origin."""
    for spec in (QuantSpec(), QuantSpec(4, 1, granularity="group:32")):
        plan = dry_run(source, spec)
        quantize(source, tmp_path / "q", spec, force=True)
        assert 0 <= folder_bytes(found.folder, plan) - all_bytes(tmp_path / "q") < 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_bits": 4, "target_size": 10}, "give one of target-bits and target-size"),
        ({"target_bits": float("nan")}, "target-bits is nan"),
        ({"target_bits": 0}, "target-bits is 0"),
        ({"target_bits": "5"}, "target-bits is '5'"),
        ({"target_bits": 4, "weighting": None}, "weighting is None"),
        ({"target_bits": 4, "target": ["a"]}, r"target is \['a'\]"),
        ({"target_bits": 4, "fixed": {"strategy": ["min_error"]}}, r"strategy is \['min_error'\]"),
        ({"target_bits": 4, "fixed": {"strategy": "foo"}}, "strategy is 'foo'"),
        ({"target_size": "4 rods"}, "'4 rods' is not a size"),
        ({"target_bits": 4, "spec": QuantSpec()}, "a spec and a target are given"),
        ({"target_bits": 4, "plan": "p.json"}, "a plan says what becomes"),
        ({"plan": "p.json", "spec": QuantSpec(2)}, "a plan says what becomes"),
        ({"plan": "nowhere.json"}, "nowhere.json: cannot be read"),
        ({"weighting": "relative"}, "weighting and fixed need"),
        ({"target_bits": 4, "weighting": "loud"}, "loud: cannot be read"),
        ({"target_bits": 4, "exclude": "*"}, "has no tensor that can be quantized under these options"),
    ],
    ids=str,
)
def test_what_makes_no_sense(tmp_path, options, message):
    with pytest.raises(SpecError, match=message):
        quantize(tiny_folder(tmp_path / "m"), tmp_path / "q", **options)
    assert not (tmp_path / "q").exists()


def test_files_that_are_no_plans(tmp_path):
    source = write_folder(tmp_path / "m", tiny_tensors())
    for text, message in (("[]", "holds a JSON list"), ("{", "is not JSON"), ("{}", "plan_version None")):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(SpecError, match=message):
            quantize(source, tmp_path / "q", plan=tmp_path / "p.json")


def test_small_tensors_are_kept_where_that_makes_the_smaller_folder(tmp_path):
    """What header, config and report say of a quantized tensor of 256 bytes is more than it saves."""
    source = write_folder(tmp_path / "m", {f"l{i}.weight": normal(i, 8, 8, dtype="fp32") for i in range(20)}, config={})
    quantize(source, tmp_path / "kept", exclude="*")
    kept = all_bytes(tmp_path / "kept")
    quantize(source, tmp_path / "q", target_size=kept + 2000)
    assert all_bytes(tmp_path / "q") <= kept + 2000
    with pytest.raises(SpecError, match="smallest plan makes a folder of") as error:
        quantize(source, tmp_path / "q2", target_size=1000)
    assert int(re.search(r"folder of (\d+) bytes", str(error.value))[1]) <= kept + 1000


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"tensors": {"x": "keep", "x": {"bits": 4}}}'])
def test_a_key_twice(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(SpecError, match=r"has the key '[ax]' twice; leave one of them"):
        read_edited_json(tmp_path / "p.json")
