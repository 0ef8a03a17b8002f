"""Quantizing a folder: the planes of the in-memory path bit for bit, the same bytes for any windows and threads."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from any_spec import specs
from folders import (
    CONFIG,
    Raw,
    as_array,
    bf16,
    is_canonical,
    normal,
    raw,
    read_folder,
    read_tensors,
    tiny_folder,
    tiny_sharded,
    tiny_tensors,
    tree,
    write_folder,
    write_sharded,
)
from splitquant.api import dry_run, quantize
from splitquant.checkpoint import windows
from splitquant.checkpoint.convert import Resources, quantize_folder
from splitquant.checkpoint.decode import as_window
from splitquant.checkpoint.windows import MemoryBudget
from splitquant.core.rows import pack_row_scale
from splitquant.core.spec import EMBEDDING, PAPER, QuantSpec
from splitquant.core.split import quantize_array
from splitquant.errors import SourceError, SpecError, TensorError
from splitquant.plan.plan import Recipe

PLAIN = QuantSpec(bits=4, clusters=1)


def expected_planes(name, tensor, spec, *, axis=0, stack=False) -> dict[str, Raw]:
    """What a quantized tensor is stored as, from `quantize_array` of the whole array in memory."""
    tensor = raw(tensor)
    array = as_window(np.frombuffer(tensor.data, np.uint8), tensor.dtype, 1, -1).reshape(tensor.shape)
    parts = [quantize_array(part, spec, axis - 1) for part in array] if stack else [quantize_array(array, spec, axis)]
    dtype = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}[parts[0].row_scale_kind]

    def plane(values, dtype):
        values = np.stack(values) if stack else values[0]
        return Raw(dtype, values.shape, np.ascontiguousarray(values).tobytes())

    planes = {
        f"{name}.codes": plane([part.codes for part in parts], "U8"),
        f"{name}.shape": raw(np.array(tensor.shape, np.int64)),
    }
    for level in ("levels",) if spec.strategy == "lloyd" else ("scale", "offset"):
        planes[f"{name}.{level}"] = plane([getattr(part, level) for part in parts], "F32")
    if spec.cluster_bits:
        planes[f"{name}.clusters"] = plane([part.clusters for part in parts], "U8")
    if spec.granularity != "tensor":
        planes[f"{name}.row_scale"] = plane(
            [pack_row_scale(part.row_scale, part.row_scale_kind) for part in parts], dtype
        )
    return planes


def fp8(seed, *shape):
    """Random finite fp8 numbers, by their bits, that are finite in both formats."""
    return np.random.default_rng(seed).choice(np.r_[0:0x70, 0x80:0xF0].astype(np.uint8), shape)


def stored(tensor_dtype, seed, *shape) -> Raw:
    """A random tensor of a safetensors dtype."""
    if tensor_dtype.startswith("F8"):
        return raw(fp8(seed, *shape), tensor_dtype)
    return raw(normal(seed, *shape, dtype={"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64"}[tensor_dtype]))


BEYOND = [
    QuantSpec(bits=4, clusters=2, strategy="magnitude", granularity="channel"),
    QuantSpec(bits=3, clusters=2, strategy="residual", granularity="group:16"),
    QuantSpec(bits=3, clusters=3, strategy="lloyd", granularity="channel"),
]
SPECS = [
    QuantSpec(),
    PAPER,
    EMBEDDING,
    PLAIN,
    QuantSpec(bits=3, clusters=2, granularity="tensor"),
    QuantSpec(bits=2, clusters=8, granularity="group:16"),
    QuantSpec(bits=4, clusters=3, granularity="group:7", symmetric=True),
    QuantSpec(bits=5, clusters=5, granularity="channel", layout="parallel"),
    QuantSpec(bits=6, clusters=4, strategy="kmeans", granularity="group:1000"),
    QuantSpec(bits=8, clusters=1, granularity="tensor", symmetric=True),
    *BEYOND,
    QuantSpec(bits=2, clusters=4, strategy="residual", granularity="tensor", symmetric=True),
    QuantSpec(bits=2, clusters=3, strategy="residual", granularity="channel", symmetric=True, polish=False),
    QuantSpec(bits=4, clusters=1, strategy="lloyd", granularity="tensor"),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2"])
def test_planes_are_those_of_the_array_in_memory(tmp_path, dtype, spec):
    """LAW: the planes on disk are those of `quantize_array` of the same array, for every dtype and spec."""
    weight = stored(dtype, 3, 33, 250)
    source = write_folder(tmp_path / "m", {"a.weight": weight}, config=CONFIG)
    report = quantize(source, tmp_path / "q", spec)
    planes = expected_planes("a.weight", weight, spec)
    if sum(len(plane.data) for plane in planes.values()) >= len(weight.data):  # fp8 does not get smaller by every spec
        assert dtype.startswith("F8")
        assert read_folder(tmp_path / "q") == {"a.weight": weight}
        return
    assert read_folder(tmp_path / "q") == planes
    array = as_window(np.frombuffer(weight.data, np.uint8), dtype, 33, 250)
    assert report.tensors[0].figures == quantize_array(array, spec).figures


@dataclass(frozen=True)
class Placed:
    """A tensor whose name and model type decide its channel axis."""

    id: str
    name: str
    shape: tuple[int, ...]
    axis: int
    stack: bool = False
    model_type: str = "tiny"


PLACED = [
    Placed("linear", "h.0.fc.weight", (24, 40), 0),
    Placed("GPT-2 Conv1D", "h.0.attn.c_attn.weight", (32, 96), 1, model_type="gpt2"),
    Placed("Conv1D name in another model", "h.0.attn.c_attn.weight", (32, 96), 0, model_type="bert"),
    Placed("conv1d", "c.weight", (16, 4, 9), 0),
    Placed("conv2d", "c.weight", (16, 3, 5, 5), 0),
    Placed("conv3d", "c.weight", (8, 3, 2, 4, 4), 0),
    Placed("experts [e, out, in]", "l.0.mlp.experts.gate_up_proj", (5, 24, 40), 1, stack=True),
    Placed("experts [e, in, out]", "l.0.mlp.experts.down_proj", (5, 24, 40), 2, stack=True, model_type="llama4"),
]


@pytest.mark.parametrize(
    "spec", [QuantSpec(), PAPER, QuantSpec(bits=4, clusters=2, granularity="group:16"), *BEYOND], ids=str
)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("case", PLACED, ids=lambda case: case.id)
def test_axes_and_stacks(tmp_path, case, dtype, spec):
    """The channel axis and stacks of experts are those of the rules; each expert equals its own 2-D result."""
    weight = stored(dtype, 4, *case.shape)
    source = write_folder(tmp_path / "m", {case.name: weight}, config={"model_type": case.model_type})
    quantize(source, tmp_path / "q", spec)
    assert read_folder(tmp_path / "q") == expected_planes(case.name, weight, spec, axis=case.axis, stack=case.stack)
    item = json.loads((tmp_path / "q/config.json").read_text())["quantization_config"]["tensors"][case.name]
    assert (item["axis"], item.get("stack", False)) == (case.axis, case.stack)


def test_each_expert_equals_the_2d_result(tmp_path):
    """Experts of a stack have the codes that they would have as files of their own."""
    stack = normal(9, 3, 24, 40)
    together = write_folder(tmp_path / "m1", {"mlp.experts.up_proj": stack})
    apart = write_folder(tmp_path / "m2", {f"mlp.experts.{i}.up_proj.weight": part for i, part in enumerate(stack)})
    quantize(together, tmp_path / "q1")
    quantize(apart, tmp_path / "q2")
    one, many = read_folder(tmp_path / "q1"), read_folder(tmp_path / "q2")
    for plane in ("codes", "clusters", "scale", "offset", "row_scale"):
        whole = as_array(one[f"mlp.experts.up_proj.{plane}"])
        for i, part in enumerate(whole):
            np.testing.assert_array_equal(part, as_array(many[f"mlp.experts.{i}.up_proj.weight.{plane}"]))


def tiny_windows(monkeypatch, nbytes):
    """Let a thread hold so little that tensors are cut into windows of about that many bytes."""
    monkeypatch.setattr(windows, "WINDOW_BYTES", nbytes)
    monkeypatch.setattr(windows, "WHOLE_BYTES", nbytes)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:16"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("nbytes", [1, 1000, 20_000, 10**9])
def test_windows_do_not_change_the_bytes(tmp_path, monkeypatch, nbytes, threads, granularity):
    """LAW: however tensors are cut into windows, every file of the output is the same."""
    source = tiny_sharded(tmp_path / "m")
    spec = QuantSpec(granularity=granularity)
    quantize(source, tmp_path / "whole", spec, threads=1)
    with monkeypatch.context() as patch:
        tiny_windows(patch, nbytes)
        quantize(source, tmp_path / "cut", spec, threads=threads)
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64", "F8_E4M3"])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_cut_tensors_equal_the_array_in_memory(tmp_path, monkeypatch, rows, dtype):
    """A tensor that goes through in windows of few rows gets the planes of the whole array, for every dtype."""
    weight, stack = stored(dtype, 5, 50, 90), stored(dtype, 6, 3, 20, 90)
    source = write_folder(tmp_path / "m", {"a.weight": weight, "mlp.experts.up_proj": stack})
    tiny_windows(monkeypatch, rows * 90 * 6)
    quantize(source, tmp_path / "q", QuantSpec(), threads=2)
    assert read_folder(tmp_path / "q") == {
        **expected_planes("a.weight", weight, QuantSpec()),
        **expected_planes("mlp.experts.up_proj", stack, QuantSpec(), axis=1, stack=True),
    }


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(16, 70)),
    spec=specs(granularities=["tensor", "channel", "group:2", "group:16", "group:33"]),
    nbytes=st.integers(1, 8000),
    dtype=st.sampled_from(["BF16", "F16", "F32"]),
    seed=st.integers(0, 9),
)
def test_any_cut_of_any_spec(tmp_path_factory, shape, spec, nbytes, dtype, seed):
    """The streaming path equals the in-memory path for any shape, spec and window; or the tensor is kept as too small."""
    tmp_path = tmp_path_factory.mktemp("any")
    weight = stored(dtype, seed, *shape)
    source = write_folder(tmp_path / "m", {"a.weight": weight})
    with pytest.MonkeyPatch.context() as patch:
        tiny_windows(patch, nbytes)
        report = quantize(source, tmp_path / "q", spec, threads=2)
    planes = expected_planes("a.weight", weight, spec)
    size = sum(len(plane.data) for plane in planes.values())
    if size < len(weight.data):
        assert read_folder(tmp_path / "q") == planes
        assert report.stored_bytes == size
    else:
        assert read_folder(tmp_path / "q") == {"a.weight": weight}
        assert f"would not get smaller ({size} bytes instead of {len(weight.data)})" in report.tensors[0].reason


@pytest.mark.parametrize("spec", BEYOND, ids=str)
def test_no_strategy_sees_windows_or_threads(tmp_path, monkeypatch, spec):
    """LAW: for the other strategies too every file is the same, however tensors are cut and however many threads work."""
    source = tiny_sharded(tmp_path / "m")
    quantize(source, tmp_path / "whole", spec, threads=1)
    for number, (nbytes, threads) in enumerate(((1, 3), (5000, 2))):
        with monkeypatch.context() as patch:
            tiny_windows(patch, nbytes)
            quantize(source, tmp_path / f"cut{number}", spec, threads=threads)
        assert tree(tmp_path / f"cut{number}") == tree(tmp_path / "whole")


def test_threads_do_not_change_the_bytes(tmp_path):
    """LAW: 1, 2 and 5 threads write the same bytes of every file."""
    source = tiny_sharded(tmp_path / "m", files={"tokenizer.json": "{}", "README.md": "# A model\n"})
    for threads in (1, 2, 5):
        quantize(source, tmp_path / f"q{threads}", threads=threads)
    assert tree(tmp_path / "q1") == tree(tmp_path / "q2") == tree(tmp_path / "q5")


def test_a_tensor_with_other_channel_axis_needs_room(tmp_path, monkeypatch):
    """A tensor that cannot be cut, because its channels are not its rows, is refused by name where it does not fit."""
    source = write_folder(tmp_path / "m", {"h.0.c_fc.weight": normal(1, 40, 160)}, config={"model_type": "gpt2"})
    monkeypatch.setattr(MemoryBudget, "thread_bytes", property(lambda _: 1000))
    with pytest.raises(SpecError, match=r"'h\.0\.c_fc\.weight'.*--max-memory"):
        quantize(source, tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_kept_tensors_are_byte_equal(tmp_path):
    """What is kept has its dtype, shape and bytes; NaN is no obstacle there."""
    kept = {
        "norm.weight": bf16([1.0, float("nan"), float("inf")]),
        "scalar": np.float32(3),
        "ids": np.arange(5, dtype=np.int64),
        "flags": np.array([True, False]),
        "nothing.weight": np.zeros((0, 8), np.float32),
        "nothing": np.zeros(0, np.float16),
        "tiny.weight": normal(1, 2, 2),
        "packed": Raw("F4", (4,), b"\x12\x03"),
        "table": normal(2, 64, 64, dtype="fp64"),
        "mlp.gate.weight": normal(3, 8, 64),
    }
    source = write_folder(tmp_path / "m", {"a.weight": normal(1, 64, 64), **kept})
    report = quantize(source, tmp_path / "q")
    out = read_folder(tmp_path / "q")
    assert {name: out[name] for name in kept} == {name: raw(tensor) for name, tensor in kept.items()}
    assert {tensor.name for tensor in report.kept} == set(kept)
    assert all(tensor.reason for tensor in report.kept)


def test_tied_embeddings_stored_twice_stay_equal(tmp_path):
    """Embeddings and a head with the same weights get the same planes."""
    table = normal(1, 60, 64)
    source = write_folder(tmp_path / "m", {"model.embed_tokens.weight": table, "lm_head.weight": table})
    quantize(source, tmp_path / "q")
    out = read_folder(tmp_path / "q")
    for plane in ("codes", "scale", "offset", "row_scale", "shape"):
        assert out[f"model.embed_tokens.weight.{plane}"] == out[f"lm_head.weight.{plane}"]
    assert out["lm_head.weight.codes"] == expected_planes("lm_head.weight", table, EMBEDDING)["lm_head.weight.codes"]


def test_every_file_is_canonical_and_opens(tmp_path):
    """Every shard opens in the official library, is canonical, and keeps the name and the metadata of the source's."""
    source = tiny_sharded(tmp_path / "m")
    quantize(source, tmp_path / "q")
    names = sorted(path.name for path in source.glob("*.safetensors"))
    assert sorted(path.name for path in (tmp_path / "q").glob("*.safetensors")) == names
    for name in names:
        assert read_tensors(tmp_path / "q" / name)
        assert is_canonical(tmp_path / "q" / name)


@pytest.mark.parametrize(
    ("metadata", "expected"), [(None, {"format": "pt"}), ({"format": "np", "a": "ü"}, {"format": "np", "a": "ü"})]
)
def test_metadata_of_shards(tmp_path, metadata, expected):
    """A shard's metadata are those of the source's, or what loaders expect."""
    source = write_folder(tmp_path / "m", {"a.weight": normal(1, 64, 64)}, metadata=metadata)
    quantize(source, tmp_path / "q")
    data = (tmp_path / "q/model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"] == expected


def test_index_is_exact(tmp_path):
    """The index names every stored tensor in its shard, counts its bytes, and keeps the source's other metadata."""
    source = write_sharded(
        tmp_path / "m",
        [{"b.weight": normal(1, 64, 64), "b.bias": normal(2, 64)}, {"a.weight": normal(3, 64, 64)}],
        index_metadata={"note": "kept", "total_parameters": 8256},
    )
    report = quantize(source, tmp_path / "q")
    index = json.loads((tmp_path / "q/model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        name: path.name for path in sorted((tmp_path / "q").glob("*.safetensors")) for name in read_tensors(path)
    }
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    total = sum(len(tensor.data) for tensor in read_folder(tmp_path / "q").values())
    assert index["metadata"] == {"note": "kept", "total_parameters": 8256, "total_size": total}
    assert report.stored_bytes == total


def test_config_keeps_the_keys_of_the_source_in_order(tmp_path):
    """config.json is the source's, in its order, with one more key whose items have the fields of docs/format.md."""
    config = {**CONFIG, "nested": {"b": 1, "a": [None, 1.5, "ü"]}}
    source = write_folder(tmp_path / "m", tiny_tensors(), config=config)
    quantize(source, tmp_path / "q")
    found = json.loads((tmp_path / "q/config.json").read_text(encoding="utf-8"))
    assert list(found) == [*config, "quantization_config"]
    assert {key: found[key] for key in config} == config
    assert list(found["nested"]) == ["b", "a"]
    quantization = found["quantization_config"]
    assert set(quantization) == {"quant_method", "format_version", "specs", "tensors"}
    assert (quantization["quant_method"], quantization["format_version"]) == ("splitquant", 1)
    assert sorted(map(str, quantization["specs"])) == sorted(str(spec.to_dict()) for spec in (EMBEDDING, QuantSpec()))
    expert = "model.layers.0.mlp.experts.gate_up_proj"
    for name, item in quantization["tensors"].items():
        assert item["dtype"] == "bf16"
        assert set(item) == {"spec", "dtype", "axis", *(["stack"] if name == expert else [])}
    assert quantization["tensors"][expert]["axis"] == 1
    assert quantization["tensors"][expert]["stack"] is True
    assert quantization["specs"][quantization["tensors"][expert]["spec"]] == QuantSpec().to_dict()
    assert quantization["specs"][quantization["tensors"]["lm_head.weight"]["spec"]] == EMBEDDING.to_dict()


def test_no_config_in_the_source(tmp_path):
    """A folder without config.json gets one with the quantization alone."""
    source = write_folder(tmp_path / "m", {"a.weight": normal(1, 64, 64)})
    quantize(source, tmp_path / "q")
    assert list(json.loads((tmp_path / "q/config.json").read_text())) == ["quantization_config"]


def test_a_null_quantization_config_is_replaced(tmp_path):
    """A source that says `quantization_config: null` is a float one."""
    source = write_folder(tmp_path / "m", {"a.weight": normal(1, 64, 64)}, config={"quantization_config": None, "z": 1})
    quantize(source, tmp_path / "q")
    assert json.loads((tmp_path / "q/config.json").read_text())["quantization_config"]["quant_method"] == "splitquant"


def test_no_time_or_path_in_any_file(tmp_path):
    """The output of a moved source, later, is the same in every byte, and holds neither path."""
    one, two = tiny_sharded(tmp_path / "first-place/m"), tiny_sharded(tmp_path / "second-place/m")
    quantize(one, tmp_path / "first-output/q")
    quantize(two, tmp_path / "second-output/q")
    files = tree(tmp_path / "first-output/q")
    assert files == tree(tmp_path / "second-output/q")
    for name, data in files.items():
        for word in (b"first-", str(tmp_path).encode(), b"seconds"):
            assert word not in data or name.endswith(".safetensors"), (name, word)


def test_other_files_are_carried_over_byte_for_byte(tmp_path):
    """Tokenizer files, subfolders and hidden files are carried over; hidden folders and an old report are not."""
    files = {
        "tokenizer.json": b'{"a": "\xff"}',
        "1_Pooling/config.json": "{}",
        ".gitattributes": "x\r\n",
        ".cache/x": "no",
        "splitquant_report.json": "an old one",
        "adapter_model.safetensors": b"not opened",
    }
    source = tiny_folder(tmp_path / "m", files=files)
    quantize(source, tmp_path / "q")
    out = tree(tmp_path / "q")
    for name in ("tokenizer.json", "1_Pooling/config.json", ".gitattributes", "adapter_model.safetensors"):
        assert out[name] == tree(source)[name]
    assert set(out) == set(tree(source)) - {".cache/x"} | {"README.md"}
    assert out["splitquant_report.json"].startswith(b"{")


CARD = b"---\nlicense: mit\ntags:\n- x\n---\n# My model\n\xc3\xbc\n"


@pytest.mark.parametrize(
    "card",
    [CARD, CARD.replace(b"\n", b"\r\n"), b"# no front matter\n", b"", b"\xff\xfe", b"---\nnever closed"],
    ids=["usual", "CRLF", "no front matter", "empty", "not UTF-8", "front matter never closed"],
)
def test_card_of_the_source_is_carried_over(tmp_path, card):
    """The source's card is carried over byte for byte under another name, and its front matter heads the new one."""
    source = tiny_folder(tmp_path / "m", files={"README.md": card})
    quantize(source, tmp_path / "q")
    assert (tmp_path / "q/README.original.md").read_bytes() == card
    text = (tmp_path / "q/README.md").read_text(encoding="utf-8")
    head = "---\nlicense: mit\ntags:\n- x\n---\n" if b"license" in card else "---\nlibrary_name: transformers\n"
    assert text.startswith(head)
    assert text.count("\n---\n") == 1
    assert "# Quantized with splitquant" in text


def test_original_card_takes_a_free_name(tmp_path):
    """A file of the source that has the name of the original card is not overwritten."""
    files = {"README.md": "new", "README.original.md": "old", "README.original2.md": "older"}
    quantize(tiny_folder(tmp_path / "m", files=files), tmp_path / "q")
    found = {name: data.decode() for name, data in tree(tmp_path / "q").items() if name.startswith("README.original")}
    assert found == {"README.original.md": "old", "README.original2.md": "older", "README.original3.md": "new"}


def test_report_in_the_folder(tmp_path):
    """The report in the folder is that of the run, without the run, and its checksums are those of the bytes."""
    report = quantize(tiny_sharded(tmp_path / "m"), tmp_path / "q")
    data = json.loads((tmp_path / "q/splitquant_report.json").read_text())
    assert "run" not in data
    assert data["tensors"] == json.loads(json.dumps([tensor.to_dict() for tensor in report.tensors]))
    checksums = {name: crc for tensor in report.tensors for name, crc in tensor.checksums.items()}
    assert checksums == {name: f"{zlib.crc32(t.data):08x}" for name, t in read_folder(tmp_path / "q").items()}
    assert report.run.resumed_shards == 0
    assert report.run.threads >= 1


def test_plan_foretells_the_output(tmp_path):
    """The sizes of the plan are those of the output, tensor by tensor."""
    source = tiny_sharded(tmp_path / "m")
    plan, report = dry_run(source), quantize(source, tmp_path / "q")
    assert [(t.name, t.stored_bytes, t.spec, t.reason) for t in plan.tensors] == [
        (t.name, t.stored_bytes, t.spec, t.reason) for t in report.tensors
    ]
    assert plan.stored_bytes == sum(len(tensor.data) for tensor in read_folder(tmp_path / "q").values())


@pytest.mark.parametrize("shards", [1, 3])
def test_advance_counts_every_source_byte(tmp_path, shards, monkeypatch):
    """Progress ends at the bytes of the source, also where tensors are cut and read twice."""
    source = tiny_sharded(tmp_path / "m", parts=shards)
    for name in ("whole", "cut"):
        told = []
        report = quantize(source, tmp_path / name, advance=told.append)
        assert sum(told) == pytest.approx(report.source_bytes, abs=64)  # halves of odd windows are rounded down
        tiny_windows(monkeypatch, 3000)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_nonfinite_weights_are_refused(tmp_path, dtype, value, granularity):
    """NaN and infinity name the file and the tensor, say what to do, and leave nothing behind."""
    good, bad = normal(1, 64, 64, dtype=dtype), normal(2, 64, 64, dtype=dtype)
    bad[5, 7] = bf16([value])[0] if dtype == "bf16" else value
    source = write_sharded(tmp_path / "m", [{"a.weight": good}, {"b.weight": bad}])
    with pytest.raises(TensorError, match=r"model-00002-of-00002.*'b\.weight' holds NaN or infinity.*--exclude"):
        quantize(source, tmp_path / "q", QuantSpec(granularity=granularity))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
    quantize(source, tmp_path / "q", exclude=["b.weight"])  # the remedy works
    assert raw(bad) == read_folder(tmp_path / "q")["b.weight"]


@pytest.mark.parametrize(
    ("dtype", "code"), [("F8_E4M3", 0x7F), ("F8_E4M3", 0xFF), ("F8_E5M2", 0x7C), ("F8_E5M2", 0x7D)]
)
def test_nonfinite_fp8_is_refused(tmp_path, dtype, code):
    """NaN and infinity of fp8 are found."""
    codes = fp8(1, 32, 300)
    codes[3, 3] = code
    source = write_folder(tmp_path / "m", {"a.weight": raw(codes, dtype)})
    with pytest.raises(TensorError, match=r"'a\.weight' holds NaN or infinity"):
        quantize(source, tmp_path / "q", PAPER)


def test_doubles_beyond_float32_are_refused(tmp_path):
    """A double that float32 cannot hold is infinity there, and refused."""
    weight = normal(1, 64, 64, dtype="fp64")
    weight[0, 0] = 1e300
    with pytest.raises(TensorError, match=r"'a\.weight'"):
        quantize(write_folder(tmp_path / "m", {"a.weight": weight}), tmp_path / "q")


VALUES = {
    "zeros": np.zeros((32, 128), np.float32),
    "minus zeros": np.full((32, 128), -0.0, np.float32),
    "constant": np.full((32, 128), -0.3, np.float32),
    "two values": np.where(np.arange(32 * 128).reshape(32, 128) % 3, np.float32(0.5), np.float32(-2)),
    "zero rows": normal(1, 32, 128, dtype="fp32") * (np.arange(32) % 2)[:, None].astype(np.float32),
    "subnormal": normal(1, 32, 128, dtype="fp32") * np.float32(2.0**-130),
    "huge": normal(1, 32, 128, dtype="fp32") * np.float32(1e38),
}


@pytest.mark.parametrize("spec", [QuantSpec(clusters=8), PAPER, PLAIN, EMBEDDING], ids=str)
@pytest.mark.parametrize("values", VALUES)
def test_degenerate_values(tmp_path, values, spec):
    """Constants, few distinct values (fewer than clusters), subnormal and huge numbers go the same way."""
    source = write_folder(tmp_path / "m", {"a.weight": VALUES[values]})
    report = quantize(source, tmp_path / "q", spec)
    assert read_folder(tmp_path / "q") == expected_planes("a.weight", VALUES[values], spec)
    if values in ("zeros", "minus zeros"):
        assert report.figures.noise == 0


@dataclass(frozen=True)
class Quantized:
    """A source that is quantized already."""

    id: str
    config: dict
    name: str
    says: str


QUANTIZED = [
    Quantized("gptq", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "a.qweight", "'gptq'"),
    Quantized("fp8", {"quantization_config": {"quant_method": "fp8"}}, "a.weight_scale_inv", "'fp8'"),
    Quantized("compressed", {"compression_config": {"format": "x"}}, "a.weight", "already quantized"),
    Quantized("fp8 that does not say so", {}, "a.weight_scale_inv", "'a.weight_scale_inv'"),
    Quantized("nested", {"text_config": {"quantization_config": {"quant_method": "awq"}}}, "a.weight", "'awq'"),
    Quantized("bitsandbytes that does not say so", {}, "a.SCB", "'a.SCB'"),
    Quantized("gptq that does not say so", {}, "a.qweight", "'a.qweight'"),
    Quantized("mxfp4 that does not say so", {}, "mlp.experts.down_proj_blocks", "_blocks'"),
]


@pytest.mark.parametrize("case", QUANTIZED, ids=lambda case: case.id)
def test_quantized_sources_are_refused(tmp_path, case):
    """Codes are never taken for weights."""
    tensors = {"b.weight": normal(1, 64, 64), case.name: np.ones((4, 4), np.float32)}
    source = write_folder(tmp_path / "m", tensors, config=case.config)
    with pytest.raises(SourceError, match="the float model it was made from") as error:
        quantize(source, tmp_path / "q")
    assert case.says in str(error.value)
    assert not (tmp_path / "q").exists()


def test_own_output_is_refused_with_the_remedy(tmp_path):
    """A splitquant folder is refused, and the verb that makes a float one of it is named."""
    quantize(tiny_folder(tmp_path / "m"), tmp_path / "q")
    with pytest.raises(SourceError, match="splitquant dequantize"):
        quantize(tmp_path / "q", tmp_path / "q2")


def test_nothing_to_quantize(tmp_path):
    """A folder whose tensors are all kept is carried over."""
    source = write_folder(tmp_path / "m", {"norm.weight": normal(1, 8)}, config={})
    report = quantize(source, tmp_path / "q")
    assert read_folder(tmp_path / "q") == read_folder(source)
    assert report.quantized == ()
    quantization = json.loads((tmp_path / "q/config.json").read_text())["quantization_config"]
    assert (quantization["specs"], quantization["tensors"]) == ([], {})


def test_a_folder_without_tensors(tmp_path):
    """A file without tensors is no model, and is refused."""
    with pytest.raises(SourceError, match="holds no tensors"):
        quantize(write_folder(tmp_path / "m", {}), tmp_path / "q")


def test_source_is_never_written(tmp_path):
    """The source is the same after a run, in bytes and times."""
    source = tiny_sharded(tmp_path / "m", files={"README.md": "x"})
    before = tree(source), {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    quantize(source, tmp_path / "q")
    assert before == (tree(source), {path: path.stat().st_mtime_ns for path in source.rglob("*")})


def test_files_stay_open_as_long_as_threads_use_them(tmp_path, monkeypatch):
    """When one tensor fails, files are closed only after every thread has come to its end (descriptors are reused)."""
    import threading
    import time

    from splitquant.checkpoint import convert
    from splitquant.checkpoint.files import TargetFile

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
    monkeypatch.setattr(convert, "transform_tensor", transform)
    monkeypatch.setattr(TargetFile, "close", close)
    with pytest.raises(TensorError):
        quantize_folder(source, tmp_path / "q", Recipe(), Resources(threads=2))
    assert late == []


@pytest.mark.parametrize(
    "scale", ["a.scale_weight", "a.weight_scale", "a.scale", "a.weight.scale", "a.input_scale", "scaled_fp8"]
)
def test_fp8_with_a_scale_is_refused(tmp_path, scale):
    """fp8 weights beside which a scale lies are codes, whatever the scale is called; without one they are plain values."""
    weight = raw(np.random.default_rng(1).integers(0, 0x70, (32, 64), np.uint8), "F8_E4M3")
    tensors = {"a.weight": weight, scale: np.float32([0.5])}
    with pytest.raises(SourceError, match="already quantized weight"):
        quantize(write_folder(tmp_path / "m", tensors, config=CONFIG), tmp_path / "q")
    quantize(write_folder(tmp_path / "plain", {"a.weight": weight}, config=CONFIG), tmp_path / "q")
    assert "a.weight.codes" in read_folder(tmp_path / "q")


@pytest.mark.parametrize("plane", ["codes", "clusters", "scale", "offset", "row_scale", "shape"])
def test_two_tensors_of_one_name_are_refused(tmp_path, plane):
    """A tensor of the source that is called like a plane would be written over, so both are named."""
    source = write_folder(
        tmp_path / "m", {"a.weight": normal(1, 64, 64), f"a.weight.{plane}": np.float32([1])}, config=CONFIG
    )
    with pytest.raises(TensorError, match=rf"'a\.weight' and 'a\.weight\.{plane}' would both be stored"):
        quantize(source, tmp_path / "q")
    assert not (tmp_path / "q").exists()
    quantize(source, tmp_path / "q", exclude=["a.weight"])
    assert read_folder(tmp_path / "q") == read_folder(source)


def test_values_that_float16_can_just_hold(tmp_path):
    """A float16 weight from which a level beyond float16 could come is refused; the largest allowed ones come back finite."""
    with pytest.raises(TensorError, match="holds 6e\\+04; fp16 magnitudes above"):
        quantize(write_folder(tmp_path / "m", {"a.weight": np.full((64, 64), 6e4, np.float16)}), tmp_path / "q")
    values = np.linspace(-32768, 32768, 4096, dtype=np.float16).reshape(64, 64)
    for spec in (PAPER, QuantSpec(bits=2, clusters=1), QuantSpec(symmetric=True)):
        assert np.isfinite(quantize_array(values, spec).dequantize("fp16")).all()
