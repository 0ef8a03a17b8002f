"""The functions that `import splitquant` offers: folders and ONNX files with the same options, planned and then done."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import splitquant
from builders.folders import normal, read_folder, tiny_folder, tiny_sharded, tiny_tensors, tree, write_folder
from splitquant import EMBEDDING, PAPER, QuantSpec, api
from splitquant.errors import SourceError, SpecError, TensorError
from splitquant.plan.options import PlanOptions
from splitquant.plan.saved import plan_to_dict
from splitquant.storage.resources import Resources

QUICK = {"granularity": "channel", "strategy": "min_error", "polish": False, "symmetric": True}


@pytest.fixture
def folder(tmp_path):
    """A tiny float folder."""
    return tiny_folder(tmp_path / "m")


@pytest.fixture
def model(tmp_path):
    """An ONNX file of several layers."""
    onnx = pytest.importorskip("onnx")
    from builders.onnx_models import several

    onnx.save(several(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.fixture(params=["folder", "model"])
def source(request):
    """A folder, then an ONNX file."""
    return request.getfixturevalue(request.param)


def result(source):
    """Where the result of a source goes."""
    return source.with_name("q" + source.suffix)


def linear_specs(outcomes):
    return {one.spec for one in outcomes if one.role == "linear" and one.outcome == "quantized"}


def test_all_names_are_there():
    assert set(splitquant.__all__) <= set(dir(splitquant))
    assert all(getattr(splitquant, name) for name in splitquant.__all__)


def test_one_statement_of_the_options():
    """The options of the functions are those of a plan, and of .onnx files how weights are stored; no more and no less."""
    pytest.importorskip("onnx")
    from splitquant.onnx import OnnxForm

    planned = {field.name for field in fields(PlanOptions)} - {"spec", "plan_file"} | {"plan"}
    stored = {field.name for field in fields(OnnxForm)} - {"full_range"}
    assert set(api.QuantizeOptions.__annotations__) == planned | stored


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"spec": QuantSpec(4, 1)},
        {"fixed": {"bits": 4, "clusters": 1}},
        {"fixed": {"bits": 8}},
        {"target": "linear-sym"},
        {"target": "linear-sym", "fixed": {"bits": 8}},
        {"preset": "paper"},
        {"embeddings": "keep", "exclude": "*down*"},
        {"embeddings": 4, "include": "*e*"},
        {"target_bits": 6.0, "fixed": QUICK},
        {"target_bits": 6.0, "fixed": QUICK, "weighting": "relative", "embeddings": 8},
        {"target_bits": 6.0, "target": "linear-sym", "fixed": QUICK},
    ],
    ids=str,
)
def test_a_dry_run_tells_what_is_done(source, options):
    """LAW: the plan is what the run does: each spec, each reason, each size."""
    plan = splitquant.dry_run(source, **options)
    report = splitquant.quantize(source, result(source), **options)
    done = report.outcomes[: len(plan.decisions)]  # of a graph, weights that no layer reads follow
    assert [one.spec for one in done] == [decision.spec for decision in plan.decisions]
    for decision, outcome in zip(plan.decisions, done, strict=True):
        assert outcome.name == decision.name
        assert decision.reason in outcome.reason
        if decision.spec is not None:
            assert outcome.stored_bytes == decision.stored_bytes


@pytest.mark.parametrize(
    ("options", "folder_spec", "model_spec"),
    [
        ({"fixed": {"bits": 3}}, QuantSpec(3), QuantSpec(3, 1, granularity="group:32", layout="parallel")),
        ({"fixed": {"clusters": 1}}, QuantSpec(4, 1), QuantSpec(8, 1, layout="parallel")),
        ({"preset": "paper"}, PAPER, PAPER),
        ({"preset": "paper", "fixed": {"bits": 3}}, QuantSpec(3, 3, "kmeans", "tensor", layout="parallel"), None),
        ({"target": "qnn", "fixed": {"clusters": 1}}, QuantSpec(4, 1, symmetric=True, layout="parallel"), None),
    ],
    ids=str,
)
def test_fixed_fields_need_no_size(folder, model, options, folder_spec, model_spec):
    """What is not fixed is what is usual there: fused clusters in folders, integer layers in graphs."""
    for source, spec in ((folder, folder_spec), (model, model_spec or folder_spec)):
        plan = splitquant.dry_run(source, **options)
        assert {d.spec for d in plan.quantized if d.layer.role == "linear"} == {spec}


def test_an_onnx_file_is_what_the_other_function_makes(model, tmp_path):
    """One path through the house: the same bytes, the same report."""
    import splitquant.onnx as sqo

    for options in ({}, {"format": "matmulnbits", "block_size": 32}, {"activations": "int8-tensor"}):
        report = splitquant.quantize(model, tmp_path / "a.onnx", force=True, **options)
        done = sqo.quantize(model, tmp_path / "b.onnx", force=True, **options)
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
        assert report == done.report


@pytest.mark.parametrize("name", ["M.ONNX", "m.Onnx"])
def test_the_name_says_what_a_source_is(model, tmp_path, name):
    assert api.is_onnx(model.rename(tmp_path / name))
    assert not api.is_onnx(tmp_path)
    assert not api.is_onnx("folder.onnx.d")
    assert splitquant.dry_run(tmp_path / name).quantized


@pytest.mark.parametrize(
    "options",
    [{"format": "qdq"}, {"block_size": 128}, {"accuracy_level": 4}, {"activations": "int8-tensor"}],
    ids=str,
)
def test_what_is_of_onnx_files_alone(folder, tmp_path, options):
    """Options that a folder cannot take are named, even where they say the default."""
    (name,) = options
    for call in (splitquant.dry_run, lambda source, **more: splitquant.quantize(source, tmp_path / "q", **more)):
        with pytest.raises(SpecError, match=f"m: is no .onnx file; leave out {name}$"):
            call(folder, **options)
    assert not (tmp_path / "q").exists()


def test_none_is_no_option(source):
    """What a caller leaves open by None is left out, for folders and .onnx files alike."""
    open_ = dict.fromkeys(("format", "block_size", "accuracy_level", "activations", "target", "plan"))
    assert splitquant.dry_run(source, **open_) == splitquant.dry_run(source)


def test_options_that_nobody_knows(source):
    for call in (splitquant.dry_run, lambda source, **more: splitquant.quantize(source, result(source), **more)):
        with pytest.raises(TypeError, match="colour"):
            call(source, colour="red")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spec": QuantSpec(4, 1), "fixed": {"bits": 4}}, "a spec and fixed fields of one are given"),
        ({"spec": QuantSpec(4, 1), "target_bits": 4}, "a spec and a target size are given"),
        ({"preset": "worst"}, "preset is 'worst'"),
        ({"target": "npu"}, "target is 'npu'"),
        ({"exclude": "nothing*"}, r"the pattern 'nothing\*' matches none"),
        ({"fixed": {"colour": 4}}, "colour"),
        ({"fixed": {"strategy": "residual", "layout": "fused"}}, "the strategy residual is always layout parallel"),
        ({"embeddings": "none"}, "embeddings is 'none'"),
        ({"max_memory": "lots"}, "'lots' is not a size"),
        ({"max_memory": "1MiB"}, "max-memory is 1 MiB"),
        ({"threads": -1}, "threads is -1"),
        ({"plan": "nowhere.json"}, "nowhere.json: cannot be read"),
        ({"target_bits": 4, "weighting": "loud.json"}, "loud.json: cannot be read"),
    ],
    ids=str,
)
def test_what_makes_no_sense(source, options, message):
    """One error, whatever the source is, and nothing is written."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(SpecError, match=message):
        splitquant.quantize(source, result(source), **options)
    assert sorted(source.parent.iterdir()) == before


@pytest.mark.parametrize("name", ["nowhere", "nowhere.onnx"])
def test_sources_that_are_not_there(tmp_path, name):
    if name.endswith(".onnx"):
        pytest.importorskip("onnx")
    with pytest.raises(SourceError, match="nowhere"):
        splitquant.quantize(tmp_path / name, tmp_path / "q")
    with pytest.raises(SourceError, match="nowhere"):
        splitquant.dry_run(tmp_path / name)


def test_a_plan_is_fed_back(source, tmp_path):
    """A plan that was saved gives the specs, and of weights the bytes, of the run that it was made for."""
    options = {"target_bits": 6.0, "fixed": QUICK}
    plan = splitquant.dry_run(source, **options)
    (tmp_path / "p.json").write_text(json.dumps(plan_to_dict(plan)))
    again = splitquant.dry_run(source, plan=tmp_path / "p.json")
    assert [d.spec for d in again.decisions] == [d.spec for d in plan.decisions]
    first, second = result(source), source.with_name("r" + source.suffix)
    splitquant.quantize(source, first, **options)
    splitquant.quantize(source, second, plan=str(tmp_path / "p.json"))
    if api.is_onnx(source):
        assert first.read_bytes() == second.read_bytes()
    else:
        assert read_folder(first) == read_folder(second)


def test_a_dry_run_reads_no_weights(source, monkeypatch):
    """Unless a size is given; then NaN is found, by name."""
    if api.is_onnx(source):
        import onnx

        from builders.onnx_models import several

        made = several()
        (tensor,) = (one for one in made.graph.initializer if one.name == "D")
        tensor.raw_data = np.full(96 * 64, np.nan, np.float32).tobytes()
        onnx.save(made, source)
        name = "D"
    else:
        name = "model.layers.1.mlp.up_proj.weight"
        source = write_folder(source.with_name("bad"), {**tiny_tensors(), name: np.full((96, 48), np.nan, np.float32)})
    assert splitquant.dry_run(source).quantized
    with pytest.raises(TensorError, match=f"tensor '{name}' holds NaN"):
        splitquant.dry_run(source, target_bits=6.0, fixed=QUICK)


def test_progress(source):
    """The bytes that a plan is about are told, of a graph without what is kept: a bar ends where it should."""
    told = []
    plan = splitquant.dry_run(source)
    splitquant.quantize(source, result(source), advance=told.append)
    kept = sum(d.source_bytes for d in plan.decisions if d.spec is None) if api.is_onnx(source) else 0
    assert sum(told) == pytest.approx(plan.source_bytes - kept, abs=64)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_jobs_close_what_they_opened(source):
    """Whether they are applied or not, and when planning fails."""

    def opened():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = opened()
    with api.prepare(source, None, Resources()) as job:
        assert job.plan.quantized
        assert job.frontier is job.chosen is None
    for options in ({"exclude": "nothing*"}, {"target_bits": 0.1, "fixed": QUICK}):
        with pytest.raises(SpecError):
            api.prepare(source, None, Resources(), **options)
    splitquant.quantize(source, result(source))
    assert opened() == before


def test_a_job_by_size_knows_its_frontier(source):
    """What the command line shows: everything that was possible, and what was chosen."""
    told = []
    with api.prepare(source, None, Resources(), told.append, target_bits=6.0, fixed=QUICK) as job:
        assert job.chosen.plan == job.plan
        assert job.chosen.bits_per_weight <= 6
        assert len(job.frontier.marks()) > 2
        report = job.apply(result(source), Resources())
    assert sum(told) > 0
    assert linear_specs(report.outcomes) == {d.spec for d in job.plan.quantized if d.layer.role == "linear"}


def test_files_of_a_source(folder, model, tmp_path):
    """What a report must not be written over, external data and results included."""
    import onnx

    from builders.onnx_models import matmul

    assert set(api.files_of(folder)) == {folder, folder / "model.safetensors"}
    assert set(api.files_of(folder, tmp_path / "q")) == {folder, folder / "model.safetensors", tmp_path / "q"}
    onnx.save(matmul(), tmp_path / "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert set(api.files_of(model, tmp_path / "q.onnx")) == {model, tmp_path / "q.onnx", tmp_path / "q.onnx.data"}
    assert set(api.files_of(tmp_path / "e.onnx")) == {tmp_path / "e.onnx", tmp_path / "w.bin"}
    assert api.source_bytes(folder) == (folder / "model.safetensors").stat().st_size
    assert api.source_bytes(tmp_path / "e.onnx") == sum(
        (tmp_path / name).stat().st_size for name in ("e.onnx", "w.bin")
    )


def test_the_way_back(tmp_path):
    """Quantize, verify, dequantize, inspect: as functions, with progress and text for sizes."""
    source = tiny_sharded(tmp_path / "m")
    report = splitquant.quantize(str(source), str(tmp_path / "q"), max_memory="1GiB")
    told = []
    verified = splitquant.verify(source, tmp_path / "q", max_memory="1GiB", advance=told.append)
    assert verified.tensors == len(tiny_tensors())
    assert sum(told) == report.source_bytes
    told.clear()
    assert splitquant.dequantize(tmp_path / "q", tmp_path / "f", advance=told.append) == sum(told)
    assert set(read_folder(tmp_path / "f")) == set(tiny_tensors())
    assert api.inspect(tmp_path / "q").quantized
    assert api.inspect(tmp_path / "q").report.outcomes == report.outcomes
    planned = api.inspect(source)
    assert not planned.quantized
    assert [one.spec for one in planned.report.outcomes] == [one.spec for one in report.outcomes]


def test_included_embeddings_while_they_are_kept(source):
    """What was drifting: one spec everywhere, that of embeddings."""
    name = "model.embed_tokens.weight" if source.is_dir() else "embed"
    plan = splitquant.dry_run(source, embeddings="keep", include=name, exclude="*head*" if source.is_dir() else "head")
    if source.is_dir():
        assert {d.spec for d in plan.quantized if d.layer.role == "embedding"} == {EMBEDDING}
    else:
        assert next(d.spec for d in plan.decisions if d.name == name) == EMBEDDING


def test_the_same_bytes_every_time(folder, tmp_path):
    splitquant.quantize(folder, tmp_path / "a", target_bits=5.0, fixed=QUICK, threads=1)
    splitquant.quantize(folder, tmp_path / "b", target_bits=5.0, fixed=QUICK, threads=3, max_memory="2GiB")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_weighting_is_a_map_or_a_file(folder, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    (tmp_path / "w.json").write_text(json.dumps({name: 0}))
    options = {"target_bits": 5.0, "fixed": QUICK}
    plans = [splitquant.dry_run(folder, weighting=w, **options) for w in ({name: 0}, str(tmp_path / "w.json"))]
    assert plans[0] == plans[1] != splitquant.dry_run(folder, **options)


def test_weights_of_other_axes(tmp_path):
    source = write_folder(tmp_path / "m", {"h.0.attn.c_attn.weight": normal(1, 48, 96)}, config={"model_type": "gpt2"})
    (decision,) = splitquant.dry_run(source).decisions
    assert decision.layer.axis == 1
