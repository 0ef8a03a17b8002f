"""All of a quantized folder but its planes: kept tensors, shards, index, configuration, card, report, progress."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

from builders.expected_planes import tiny_windows
from builders.folders import (
    CONFIG,
    Raw,
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
from splitquant.core.spec import EMBEDDING, QuantSpec


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
    assert sorted(map(str, quantization["specs"])) == sorted(str(spec.to_stored()) for spec in (EMBEDDING, QuantSpec()))
    expert = "model.layers.0.mlp.experts.gate_up_proj"
    for name, item in quantization["tensors"].items():
        assert item["dtype"] == "bf16"
        assert set(item) == {"spec", "dtype", "axis", *(["stack"] if name == expert else [])}
    assert quantization["tensors"][expert]["axis"] == 1
    assert quantization["tensors"][expert]["stack"] is True
    assert quantization["specs"][quantization["tensors"][expert]["spec"]] == QuantSpec().to_stored()
    assert quantization["specs"][quantization["tensors"]["lm_head.weight"]["spec"]] == EMBEDDING.to_stored()


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
    assert data["tensors"] == json.loads(json.dumps([tensor.to_dict() for tensor in report.outcomes]))
    checksums = {name: crc for tensor in report.outcomes for name, crc in tensor.checksums.items()}
    assert checksums == {name: f"{zlib.crc32(t.data):08x}" for name, t in read_folder(tmp_path / "q").items()}
    assert report.run.resumed_shards == 0
    assert report.run.threads >= 1


def test_plan_foretells_the_output(tmp_path):
    """The sizes of the plan are those of the output, tensor by tensor."""
    source = tiny_sharded(tmp_path / "m")
    plan, report = dry_run(source), quantize(source, tmp_path / "q")
    assert [(t.name, t.stored_bytes, t.spec, t.reason) for t in plan.decisions] == [
        (t.name, t.stored_bytes, t.spec, t.reason) for t in report.outcomes
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


def test_nothing_to_quantize(tmp_path):
    """A folder whose tensors are all kept is carried over."""
    source = write_folder(tmp_path / "m", {"norm.weight": normal(1, 8)}, config={})
    report = quantize(source, tmp_path / "q")
    assert read_folder(tmp_path / "q") == read_folder(source)
    assert report.changed == ()
    quantization = json.loads((tmp_path / "q/config.json").read_text())["quantization_config"]
    assert (quantization["specs"], quantization["tensors"]) == ([], {})


def test_source_is_never_written(tmp_path):
    """The source is the same after a run, in bytes and times."""
    source = tiny_sharded(tmp_path / "m", files={"README.md": "x"})
    before = tree(source), {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    quantize(source, tmp_path / "q")
    assert before == (tree(source), {path: path.stat().st_mtime_ns for path in source.rglob("*")})
