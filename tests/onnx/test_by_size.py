"""A size in, a model out: never over, the same for everyone, and the smallest that is possible is named."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import splitquant
import splitquant.onnx as sqo
from builders.onnx_models import FLOAT16, all_bytes, heavy, matmul, model, run, several, sqnr, value
from splitquant import EMBEDDING, QuantSpec
from splitquant.errors import SpecError
from splitquant.onnx.job import prepare_model
from splitquant.plan.options import PlanOptions
from splitquant.plan.planner import KEPT, Goal
from splitquant.plan.saved import plan_to_dict
from splitquant.storage.resources import Resources

QUICK = {  # a small pool
    "strategy": "min_error",
    "granularity": ("channel", "group:32"),
    "symmetric": (False, True),
    "polish": False,
}
FEEDS = {"ids": np.array([3, 1, 4, 1, 79])}


def branching():
    """A weight of the outer graph that both branches of an If read, one of the inner graph, and one that an Einsum keeps."""

    def branch(name, weight, extra=()):
        node = helper.make_node("MatMul", ["x", weight], [f"{name}.out"], name=f"{name}.fc")
        return helper.make_graph([node], name, [], [value(f"{name}.out", None)], extra)

    inner = numpy_helper.from_array(heavy((64, 64), 1), "inner")
    nodes = [
        helper.make_node(
            "If", ["c"], ["h"], then_branch=branch("yes", "outer"), else_branch=branch("no", "inner", [inner])
        ),
        helper.make_node("MatMul", ["h", "outer"], ["k"], name="again"),
        helper.make_node("MatMul", ["k", "W"], ["l"], name="fc"),
        helper.make_node("Einsum", ["l", "W"], ["y"], equation="ij,jk->ik", name="kept"),
    ]
    inputs = [value("x", ["b", 64]), value("c", [], onnx.TensorProto.BOOL)]
    return model(nodes, inputs, [value("y", None)], {"outer": heavy((64, 64)), "W": heavy((64, 64), 2)})


@dataclass(frozen=True)
class Case:
    """A model, and how it is stored before and after."""

    id: str
    model: Any
    external: bool = False
    storage: tuple[tuple[str, Any], ...] = ()


CASES = [
    Case("qdq", several),
    Case("qdq, old opset", lambda: several(opset=13)),
    Case("qdq, external data", several, external=True),
    Case("matmulnbits", several, storage=(("format", "matmulnbits"),)),
    Case("matmulnbits, small blocks", several, storage=(("format", "matmulnbits"), ("block_size", 16))),
    Case("integer products", several, storage=(("activations", "int8-tensor"),)),
    Case("float16", lambda: several(dtype=np.float16)),
    Case("subgraphs", branching),
    Case("subgraphs, external data", branching, external=True),
]


@dataclass(frozen=True)
class Prepared:
    """A source file, how its result is stored, and everything that it can become."""

    path: Any
    storage: dict[str, Any]
    frontier: Any

    def write(self, choice, folder, number):
        """The bytes of the model that a plan makes, through a plan file, and its report."""
        (folder / "plan.json").write_text(json.dumps(plan_to_dict(choice.plan)))
        out = folder / f"out{number}.onnx"
        if not choice.plan.quantized:
            return all_bytes(self.path), None
        done = sqo.quantize(self.path, out, plan_file=folder / "plan.json", **self.storage)
        return all_bytes(out), done.report


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.id)
def prepared(request, tmp_path_factory):
    """Each case in turn, measured once."""
    case = request.param
    path = tmp_path_factory.mktemp("source") / "m.onnx"
    onnx.save(case.model(), path, save_as_external_data=case.external, location="m.onnx.data", size_threshold=0)
    storage = dict(case.storage)
    with prepare_model(path, PlanOptions(target_bits=8.0, fixed=QUICK), Resources(), **storage) as job:
        return Prepared(path, storage, job.frontier)


def smallest_size(frontier):
    """The size that the error names."""
    with pytest.raises(SpecError, match="target-size is 999 bytes; the smallest plan makes an output of") as error:
        frontier.for_size(999)
    return int(re.search(r"an output of (\d+) bytes", str(error.value))[1])


def test_no_model_is_over_its_size(prepared, tmp_path):
    """LAW: the written files, external data included, are never larger than was asked for, nor than was foretold."""
    smallest, largest = smallest_size(prepared.frontier), prepared.frontier.marks()[-1].total_bytes
    for number in range(8):
        nbytes = smallest + (largest - smallest) * number // 7 + number % 3
        choice = prepared.frontier.for_size(nbytes)
        written, report = prepared.write(choice, tmp_path, number)
        assert written <= choice.total_bytes <= nbytes
        if report is not None:
            assert report.figures.noise == pytest.approx(choice.figures.noise, rel=1e-9)


def test_more_bytes_never_more_noise(prepared):
    """LAW: a larger model is never worse, to the byte."""
    sizes = range(smallest_size(prepared.frontier), prepared.frontier.marks()[-1].total_bytes + 5000, 397)
    found = [prepared.frontier.for_size(nbytes) for nbytes in sizes]
    assert all(choice.total_bytes <= nbytes for nbytes, choice in zip(sizes, found, strict=True))
    noise = [choice.figures.noise for choice in found]
    assert noise == sorted(noise, reverse=True)
    assert noise[0] > noise[-1]


def test_the_smallest_size_is_named_and_possible(prepared, tmp_path):
    """The error says which size would do; it does, and a byte less does not."""
    nbytes = smallest_size(prepared.frontier)
    choice = prepared.frontier.for_size(nbytes)
    assert choice.total_bytes == nbytes
    assert prepared.write(choice, tmp_path, 0)[0] <= nbytes
    with pytest.raises(SpecError, match="the smallest plan makes an output of"):
        prepared.frontier.for_size(nbytes - 1)


def test_shared_weights_have_one_spec(prepared):
    """Nodes of one graph that read one weight have the same spec at every size, and count once."""
    for mark in prepared.frontier.marks():
        decisions = {decision.name: decision for decision in mark.plan.decisions}
        for decision in mark.plan.decisions:
            if decision.layer.owner != decision.name:
                owner = decisions[decision.layer.owner]
                assert (decision.spec, decision.stored_bytes, decision.source_bytes) == (owner.spec, 0, 0)


def layer_by_layer(dtype=np.float32):
    """Weights each of which one node reads."""
    nodes = [helper.make_node("MatMul", [f"h{i}", f"W{i}"], [f"h{i + 1}"], name=f"fc{i}") for i in range(6)]
    weights = {f"W{i}": heavy((96, 96), i, dtype) for i in range(6)}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model(nodes, [value("h0", ["b", 96], kind)], [value("h6", ["b", 96], kind)], weights)


def table_and_head():
    """A table that is looked up and, transposed, multiplied: most of the bytes of a small language model."""
    nodes = [
        helper.make_node("Gather", ["E", "ids"], ["h"], name="embed"),
        helper.make_node("Gemm", ["h", "E"], ["y"], transB=1, name="head"),
    ]
    weights = {"E": heavy((500, 64))}
    return model(nodes, [value("ids", [5], onnx.TensorProto.INT64)], [value("y", [5, 500])], weights)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("make", [layer_by_layer, table_and_head], ids=lambda make: make.__name__)
def test_what_is_foretold_is_not_far_off(tmp_path, make, external):
    """The bound is no guess: above the files by some kilobytes of names, and of pages where there is external data."""
    path = tmp_path / "m.onnx"
    onnx.save(make(), path, save_as_external_data=external, location="m.onnx.data", size_threshold=0)
    with prepare_model(path, PlanOptions(target_bits=8.0, fixed=QUICK), Resources()) as job:
        choice = job.frontier.marks()[2]
    written, _ = Prepared(path, {}, job.frontier).write(choice, tmp_path, 0)
    layers = len(choice.plan.decisions)
    assert 0 <= choice.total_bytes - written < 6000 + layers * (4 * 4096 if external else 600)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model of several layers, in one file."""
    path = tmp_path_factory.mktemp("source") / "m.onnx"
    onnx.save(several(), path)
    return path


def test_the_whole_way(source, tmp_path):
    """Both functions keep the size, write the same bytes, and what they write runs."""
    wanted = run(source, FEEDS)[0]
    nbytes = 40_000
    report = splitquant.quantize(source, tmp_path / "a.onnx", target_size="40kB", fixed=QUICK)
    done = sqo.quantize(source, tmp_path / "b.onnx", target_size=nbytes, fixed=QUICK, threads=1)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert report.outcomes == done.report.outcomes
    assert nbytes - 6000 < all_bytes(tmp_path / "a.onnx") <= nbytes
    assert sqnr(wanted, run(tmp_path / "a.onnx", FEEDS)[0]) > 15
    onnx.checker.check_model(str(tmp_path / "a.onnx"))


def test_a_size_that_cannot_be_leaves_nothing(source, tmp_path):
    for make in (splitquant.quantize, sqo.quantize):
        with pytest.raises(
            SpecError, match=r"target-size is 1000 bytes; the smallest plan makes an output of \d+ bytes"
        ):
            make(source, tmp_path / "q.onnx", target_size="1kB", fixed=QUICK)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bits", [3.0, 4.5, 6.0])
def test_bits_per_weight(source, tmp_path, bits):
    """LAW: stored bits of the layers that there is a choice for are at most what was asked, and not far below."""
    report = splitquant.quantize(source, tmp_path / "q.onnx", target_bits=bits, fixed=QUICK)
    chosen = [one for one in report.outcomes if one.role != "other" and one.source_bytes and min(one.shape) > 1]
    weights = sum(one.weights for one in chosen)
    assert bits - 1.5 < 8 * sum(one.stored_bytes for one in chosen) / weights <= bits


def test_the_smallest_bits_are_named_and_possible(source):
    with pytest.raises(SpecError, match="the smallest possible here is") as error:
        splitquant.dry_run(source, target_bits=1, fixed=QUICK)
    bits = float(re.search(r"here is ([\d.]+) stored", str(error.value))[1])
    assert splitquant.dry_run(source, target_bits=bits, fixed=QUICK).quantized


def test_a_plan_is_for_the_runtime():
    """Without a target the specs are those that ONNX Runtime has kernels for; what is said of a target or a field holds."""
    made = several()

    def specs(**options):
        with prepare_model(made, PlanOptions(**options), Resources()) as job:
            return {d.spec for d in job.plan.quantized if d.layer.role != "embedding"}

    plain = specs(target_bits=5.0, fixed=QUICK)
    assert {spec.bits for spec in plain} <= {2, 4, 8}
    assert all(spec.zero_in_grid for spec in plain)
    assert {spec.clusters for spec in specs(target_bits=5.0, fixed={**QUICK, "clusters": 1})} == {1}
    assert all(spec.symmetric for spec in specs(target_bits=5.0, fixed=QUICK, target="linear-sym"))


def test_convolutions_have_no_groups(prepared):
    """What cannot be stored by the very spec is no candidate: nothing is planned that is not done."""
    for name, one in prepared.frontier.choices.items():
        groups = {spec.granularity.kind for spec in one.measured.specs if spec is not None}
        if name in ("conv", "embed"):
            assert groups <= {"channel", "tensor"}
    if prepared.storage.get("activations") == "int8-tensor":
        kinds = {s.granularity.kind for one in prepared.frontier.choices.values() for s in one.measured.specs if s}
        assert kinds <= {"channel", "tensor"}


def test_embeddings_are_chosen_unless_they_are_said(source):
    """Tables are plain and symmetric, as every form of them is, whatever else is said of the weights."""

    def table(**options):
        plan = splitquant.dry_run(source, target_bits=5.0, fixed=QUICK, **options)
        return next(d.spec for d in plan.decisions if d.layer.role == "embedding")

    assert table(embeddings=8) == EMBEDDING
    assert table(embeddings="keep") is None
    chosen = table()
    assert (chosen.clusters, chosen.symmetric, chosen.granularity.kind) == (1, True, "channel")


def test_embeddings_are_chosen_though_nobody_says_symmetric(tmp_path):
    """A table takes symmetric grids alone, which are candidates without a word."""
    onnx.save(table_and_head(), tmp_path / "m.onnx")
    fixed = {"granularity": "channel"}
    plan = splitquant.dry_run(tmp_path / "m.onnx", target_bits=5.0, fixed=fixed)
    assert next(d.spec for d in plan.decisions if d.name == "embed").symmetric
    with prepare_model(tmp_path / "m.onnx", PlanOptions(target_bits=5.0, fixed=fixed), Resources()) as job:
        assert len(job.frontier.marks()) > 3


def test_marks_of_what_can_only_be_kept(tmp_path):
    """A layer none of whose candidates can be stored stays as it is, and the sizes that are possible are shown."""
    onnx.save(several(), tmp_path / "m.onnx")
    options = PlanOptions(target_bits=20.0, fixed={"symmetric": False, "granularity": "group:32", "polish": False})
    with prepare_model(tmp_path / "m.onnx", options, Resources()) as job:
        assert {one.name for one in job.plan.decisions if one.spec is None} >= {"conv", "embed"}
        assert job.frontier.marks()


def test_weighting_moves_bits(source, tmp_path):
    """Of a node, or of its weight, by name or pattern; also from a file."""

    def stored(weighting):
        plan = splitquant.dry_run(source, target_bits=4.0, fixed=QUICK, weighting=weighting)
        return next(d.stored_bytes for d in plan.decisions if d.name == "down")

    assert stored({"down": 0}) <= stored("energy") <= stored({"D": 1e9})
    assert stored({"down": 0}) < stored({"d[o]wn": 1e9})
    (tmp_path / "w.json").write_text('{"D": 0}')
    assert stored(str(tmp_path / "w.json")) == stored({"D": 0})
    with pytest.raises(SpecError, match="the weighting names 'nothing', which is none of the"):
        stored({"nothing": 1})


def test_a_large_budget_keeps_weights(source):
    plan = splitquant.dry_run(source, target_bits=40, fixed=QUICK)
    assert {d.reason for d in plan.decisions if d.layer.possible} == {KEPT}
    plan = splitquant.dry_run(source, target_bits=40, fixed=QUICK, include="D")
    assert [d.name for d in plan.quantized] == ["down"]


def test_same_plan_whatever_the_threads_and_the_memory(source):
    plans = [
        splitquant.dry_run(source, target_bits=4.5, fixed=QUICK, threads=threads, max_memory=memory)
        for threads, memory in ((1, "1GiB"), (3, "300MiB"))
    ]
    assert plans[0] == plans[1]


def test_better_than_the_same_spec_everywhere(prepared, tmp_path):
    """At the bytes of one spec for all weights, the chosen ones lose no more."""
    if prepared.storage:
        pytest.skip("one way to store is enough")
    spec = QuantSpec(4, 1, granularity="channel", layout="parallel", polish=False)
    with prepare_model(prepared.path, PlanOptions(spec=spec), Resources()) as job:
        plan = job.plan
    choices = prepared.frontier.choices
    names = [name for name in choices if next(d.spec for d in plan.decisions if d.name == name) is not None]
    done = sqo.quantize(prepared.path, tmp_path / "q.onnx", spec, embeddings=spec.__class__(8, 1, symmetric=True))
    assert names
    size = sum(
        choices[n].measured.layer.nbytes
        if n not in names
        else next(d.stored_bytes for d in plan.decisions if d.name == n)
        for n in choices
    )
    assert prepared.frontier.at(size).figures.noise <= done.report.figures.noise * (1 + 1e-9)


def test_size_and_bits_of_a_model_in_memory():
    done = sqo.quantize(several(), target_size=40_000, fixed=QUICK)
    assert len(done.model.SerializeToString()) <= 40_000
    assert sqnr(run(several(), FEEDS)[0], run(done.model, FEEDS)[0]) > 15


def small_scales(layers=12, side=128):
    """float16 weights none of whose scales float16 can hold."""
    nodes = [helper.make_node("MatMul", [f"h{i}", f"W{i}"], [f"h{i + 1}"], name=f"fc{i}") for i in range(layers)]
    weights = {f"W{i}": (heavy((side, side), i) * 1e-5).astype(np.float16) for i in range(layers)}
    last = value(f"h{layers}", ["b", side], FLOAT16)
    return model(nodes, [value("h0", ["b", side], FLOAT16)], [last], weights)


def test_no_model_is_over_its_size_where_scales_are_wide(tmp_path):
    """LAW: also where float16 cannot hold the scales, so that they take twice the bytes and a Cast."""
    path = tmp_path / "m.onnx"
    onnx.save(small_scales(), path)
    with prepare_model(path, PlanOptions(target_bits=8.0, fixed=QUICK), Resources()) as job:
        frontier = job.frontier
    found = Prepared(path, {}, frontier)
    smallest, largest = frontier.marks()[0].total_bytes, frontier.marks()[-1].total_bytes
    sizes = [smallest + (largest - smallest) * number // 12 for number in range(1, 8)]
    over = {}
    for number, nbytes in enumerate(sizes):
        written, _ = found.write(frontier.for_size(nbytes), tmp_path, number)
        if written > nbytes:
            over[nbytes] = written
    assert over == {}


def test_marks_rise(prepared):
    marks = prepared.frontier.marks()
    assert len(marks) >= 4
    for smaller, larger in pairwise(marks):
        assert smaller.tensor_bytes < larger.tensor_bytes
        assert smaller.figures.noise > larger.figures.noise


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spec": QuantSpec(layout="parallel"), "target_bits": 4}, "a spec and a target size are given"),
        ({"target_bits": 4, "target_size": 10}, "give one of target-bits and target-size"),
        ({"target_bits": 5, "fixed": {"strategy": "lloyd"}}, "cannot run the strategy lloyd"),
        ({"target_bits": 5, "fixed": {"bits": 3}}, "the target onnxruntime .* cannot run codes of 3 bits"),
        ({"target_bits": 5, "embeddings": QuantSpec(4, 2)}, "embeddings"),
        ({"weighting": "relative"}, "weighting needs target-bits or target-size"),
        ({"target_bits": 5, "exclude": "*"}, "m.onnx: has no tensor that can be quantized under these options"),
    ],
    ids=str,
)
def test_what_makes_no_sense(source, tmp_path, options, message):
    for make in (splitquant.quantize, sqo.quantize):
        with pytest.raises(SpecError, match=message):
            make(source, tmp_path / "q.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_split_has_no_sizes():
    """Float parts are never smaller; only what quantizes takes a size."""
    with pytest.raises(TypeError, match="target_size"):
        sqo.split(matmul(), target_size=1000)


def test_a_goal_is_that_of_the_options(source):
    with prepare_model(source, PlanOptions(target_bits=4.5, fixed=QUICK), Resources()) as job:
        assert job.chosen == job.frontier.for_goal(Goal(bits=4.5))
        assert job.plan == job.chosen.plan
