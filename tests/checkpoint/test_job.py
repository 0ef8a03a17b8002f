"""A size in, a folder out: never over, as close as one tensor allows, the same for everyone."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest

from builders.folders import middling_folder, normal, tiny_folder, tiny_sharded, tiny_tensors, tree, write_folder
from splitquant.api import dry_run, quantize, verify
from splitquant.checkpoint.convert import apply_plan
from splitquant.checkpoint.job import folder_frontier
from splitquant.checkpoint.source import open_float_folder, read_plan
from splitquant.core.spec import QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.planner import KEPT, Frontier, Goal
from splitquant.plan.recipe import Recipe
from splitquant.plan.saved import plan_to_dict
from splitquant.storage.resources import Resources

BITS = Goal(bits=4.0)


def frontier(source, goal=BITS, recipe=None, threads=1) -> Frontier:
    """The frontier of a folder."""
    return folder_frontier(open_float_folder(source), goal, recipe or Recipe(), Resources(threads=threads))


def all_bytes(folder):
    """The size of every file of a folder."""
    return sum(len(data) for data in tree(folder).values())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model of different sizes and distributions."""
    return middling_folder(tmp_path_factory.mktemp("source") / "m")


@pytest.fixture(scope="module")
def found(source):
    """Its frontier."""
    return frontier(source)


@pytest.mark.parametrize("make", [tiny_folder, tiny_sharded], ids=lambda make: make.__name__)
def test_no_small_folder_is_over_its_size(tmp_path, make):
    source = make(tmp_path / "m")
    sweep(source, frontier(source), tmp_path / "q")


def test_no_folder_is_over_its_size(tmp_path, source, found):
    sweep(source, found, tmp_path / "q")


def sweep(source, found, place):
    """Write folders of many sizes."""
    smallest, largest = found.marks()[0].total_bytes, found.marks()[-1].total_bytes
    for number in range(9):
        nbytes = smallest + (largest - smallest) * number // 8 + number % 3
        choice = found.for_size(nbytes)
        apply_plan(open_float_folder(source), choice.plan, place, Resources(force=True))
        written = all_bytes(place)
        assert written <= choice.total_bytes <= nbytes
        # Figures in report and card are counted at their longest: some letters for each tensor and row.
        assert choice.total_bytes - written < 60 * len(choice.plan.decisions) + 400


def test_as_close_as_one_tensor_allows(found):
    """No change of one tensor that lowers the error fits; of the tables a change may still move some hundred bytes."""
    nbytes = 90_000
    choice = found.for_size(nbytes)
    room = nbytes - choice.total_bytes
    specs = {decision.name: decision.spec for decision in choice.plan.decisions}
    for name, one in found.choices.items():
        now = one.measured.specs.index(specs[name])
        for size, noise in zip(one.nbytes, one.measured.noise, strict=True):
            if noise < one.measured.noise[now]:
                assert size - one.nbytes[now] > room - 2000


def test_the_smallest_size_is_named_and_possible(tmp_path, source):
    with pytest.raises(SpecError, match="the smallest plan makes an output of") as error:
        quantize(source, tmp_path / "q", target_size=1000)
    nbytes = int(re.search(r"an output of (\d+) bytes", str(error.value))[1])
    assert not (tmp_path / "q").exists()
    quantize(source, tmp_path / "q", target_size=nbytes)
    assert all_bytes(tmp_path / "q") <= nbytes
    with pytest.raises(SpecError, match="the smallest plan makes an output of"):
        quantize(source, tmp_path / "q2", target_size=nbytes - 1)


def test_the_smallest_bits_are_named_and_possible(source):
    with pytest.raises(SpecError, match="the smallest possible here is") as error:
        dry_run(source, target_bits=1.5)
    bits = float(re.search(r"here is ([\d.]+) stored", str(error.value))[1])
    plan = dry_run(source, target_bits=bits)
    assert {decision.spec.bits for decision in plan.quantized} == {2}


@pytest.mark.parametrize("bits", [2.5, 3.3, 4.5, 6.0])
def test_bits_per_weight(tmp_path, bits, source):
    report = quantize(source, tmp_path / "q", target_bits=bits)
    chosen = [tensor for tensor in report.outcomes if tensor.role in ("linear", "embedding")]
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
        choice = found.at(sum(tensor.stored_bytes for tensor in report.changed))
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
    again = read_plan(open_float_folder(source), tmp_path / "plan.json")
    assert [decision.spec for decision in again.decisions] == [decision.spec for decision in plan.decisions]


def test_a_large_budget_keeps_tensors(source):
    plan = dry_run(source, target_bits=12)
    kept = [decision for decision in plan.decisions if decision.reason == KEPT]
    assert kept
    assert all(decision.stored_bytes == decision.source_bytes == decision.layer.nbytes for decision in kept)
    plan = dry_run(source, target_bits=12, include="model.layers.*.weight")
    assert not [d for d in plan.decisions if d.reason == KEPT and d.name.startswith("model.layers")]


def test_what_is_said_of_embeddings_holds(source):

    def spec_of(**options):
        plan = dry_run(source, target_bits=4.0, **options)
        return next(decision.spec for decision in plan.decisions if decision.layer.role == "embedding")

    assert spec_of(embeddings=6) == QuantSpec(6, 1, symmetric=True)
    assert spec_of(embeddings="keep") is None
    assert spec_of().clusters == 1


def test_fixed_and_target(source):

    def linear(**options):
        return [d.spec for d in dry_run(source, **options).quantized if d.layer.role == "linear"]

    assert {spec.granularity.kind for spec in linear(target_bits=5, fixed={"granularity": "tensor"})} == {"tensor"}
    assert {spec.bits for spec in linear(target_bits=4.5, fixed={"bits": 4})} == {4}
    goal = Goal(bits=5, target="linear-sym")
    specs = [d.spec for d in frontier(source, goal).for_goal(goal).plan.quantized]
    assert all(spec.symmetric for spec in specs)


def test_symmetric_is_of_embeddings_too(source):
    specs = [decision.spec for decision in dry_run(source, target_bits=6, fixed={"symmetric": True}).quantized]
    assert specs
    assert all(spec.symmetric for spec in specs)


def test_weighting_moves_bits(tmp_path, source):
    name = "model.layers.0.up_proj.weight"

    def bits(weighting):
        plan = dry_run(source, target_bits=4.0, weighting=weighting)
        decision = next(decision for decision in plan.decisions if decision.name == name)
        return 8 * decision.stored_bytes / decision.layer.weights

    assert bits({name: 0}) <= bits("energy") < bits("relative") <= bits({name: 1e9})
    (tmp_path / "w.json").write_text(json.dumps({name: 0}))
    assert bits(str(tmp_path / "w.json")) == bits({name: 0})


def test_marks_rise(found):
    marks = found.marks()
    assert 8 <= len(marks) <= 16
    for smaller, larger in pairwise(marks):
        assert smaller.tensor_bytes < larger.tensor_bytes
        assert smaller.figures.noise > larger.figures.noise


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
        ({"target_bits": 4, "spec": QuantSpec()}, "a spec and a target size are given"),
        ({"target_bits": 4, "plan": "p.json"}, "a plan says what becomes"),
        ({"plan": "p.json", "spec": QuantSpec(2)}, "a plan says what becomes"),
        ({"plan": "nowhere.json"}, "nowhere.json: cannot be read"),
        ({"weighting": "relative"}, "weighting needs target-bits or target-size"),
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
    with pytest.raises(SpecError, match="smallest plan makes an output of") as error:
        quantize(source, tmp_path / "q2", target_size=1000)
    assert int(re.search(r"an output of (\d+) bytes", str(error.value))[1]) <= kept + 1000
