"""Damage that shapes do not show: found whoever reads, named with its plane, and never decoded in silence."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from builders.folders import normal, write_folder
from splitquant import api
from splitquant.checkpoint.quantized import open_quantized
from splitquant.core.kernels import kernels
from splitquant.core.spec import QuantSpec
from splitquant.errors import SourceError
from splitquant.format.damage import damage_of, damage_of_ids

X = "a.weight"


@pytest.mark.parametrize(
    ("plane", "values", "damage"),
    [
        ("scale", [0.0, 1.0], ""),
        ("scale", [1.0, -1.0], "holds negative numbers"),
        ("row_scale", [[1.0], [-0.5]], "holds negative numbers"),
        ("row_scale", [[1.0], [np.nan]], "holds NaN or infinity"),
        ("offset", [-1.0, 1.0], ""),
        ("offset", [np.inf, 1.0], "holds NaN or infinity"),
        ("levels", [[1.0, 2.0, 2.0], [-1.0, 0.0, 5.0]], ""),
        ("levels", [[1.0, 2.0, 1.5]], "holds levels that do not rise"),
    ],
)
def test_numbers(plane, values, damage):
    assert damage_of(plane, np.array(values, np.float32)) == damage


@pytest.mark.parametrize("clusters", [3, 4, 5, 8])
def test_ids(clusters):
    """Ids up to k - 1 are names of clusters; a larger one, which three of these widths can spell, is damage."""
    spec = QuantSpec(4, clusters)
    ids = np.arange(clusters, dtype=np.uint8)[None]
    packed = kernels().pack(ids, spec.cluster_bits)
    assert damage_of_ids(packed, clusters, spec) == ""
    if clusters < 1 << spec.cluster_bits:
        packed = kernels().pack(ids + np.uint8(1), spec.cluster_bits)
        assert (
            damage_of_ids(packed, clusters, spec)
            == f"holds the cluster id {clusters}, and there are {clusters} clusters"
        )


@pytest.fixture
def broken(tmp_path):
    """`broken(plane, change, spec)`: a quantized folder whose plane was changed byte by byte, and its source."""

    def make(plane, change, spec):
        source = write_folder(tmp_path / "m", {X: normal(1, 64, 64)}, config={})
        api.quantize(source, tmp_path / "q", spec)
        opened = open_quantized(tmp_path / "q")
        entry = opened.folder.tensors[f"{X}.{plane}"]
        path = tmp_path / "q/model.safetensors"
        data = bytearray(path.read_bytes())
        raw = np.frombuffer(data, np.uint8)[entry.start : entry.start + entry.nbytes].copy()
        change(raw)
        data[entry.start : entry.start + entry.nbytes] = raw.tobytes()
        path.write_bytes(data)
        return source, tmp_path / "q"

    return make


def put(number, dtype="<f4"):
    """Let a plane begin with a number."""

    def change(raw):
        raw.view(dtype)[:1] = number

    return change


K3, LLOYD = QuantSpec(4, 3), QuantSpec(3, 1, "lloyd")
CASES = [
    ("scale", put(np.nan), K3, "holds NaN or infinity"),
    ("scale", put(-1.0), K3, "holds negative numbers"),
    ("offset", put(np.inf), K3, "holds NaN or infinity"),
    ("levels", put(1e9), LLOYD, "holds levels that do not rise"),
]
OF_ROWS = [
    ("row_scale", put(0xFF80, "<u2"), K3, "holds NaN or infinity"),
    ("row_scale", put(0xBF80, "<u2"), K3, "holds negative numbers"),
    ("clusters", put(0xFF, "u1"), K3, "holds the cluster id 3, and there are 3 clusters"),
]


@pytest.mark.parametrize(("plane", "change", "spec", "damage"), CASES)
def test_small_planes_are_checked_on_open(broken, tmp_path, plane, change, spec, damage):
    source, q = broken(plane, change, spec)
    for read in (
        lambda: api.inspect(q),
        lambda: api.verify(source, q),
        lambda: api.dequantize(q, tmp_path / "f"),
    ):
        with pytest.raises(SourceError, match=rf"model\.safetensors: tensor 'a\.weight\.{plane}' {damage}; .*damaged"):
            read()
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(("plane", "change", "spec", "damage"), OF_ROWS)
def test_planes_of_rows_are_checked_where_they_are_read(broken, tmp_path, plane, change, spec, damage):
    _, q = broken(plane, change, spec)
    with pytest.raises(SourceError, match=rf"model\.safetensors: tensor 'a\.weight\.{plane}' {damage}"):
        api.dequantize(q, tmp_path / "f")
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(("plane", "change", "spec", "damage"), [*CASES, *OF_ROWS])
def test_loading_checks_them_too(tmp_path, broken, plane, change, spec, damage):
    torch_packing = pytest.importorskip("splitquant.torch.packing")
    safetensors = pytest.importorskip("safetensors.torch")
    from splitquant.errors import TensorError

    _, q = broken(plane, change, spec)
    tensors = safetensors.load_file(q / "model.safetensors")
    planes = {name.removeprefix(f"{X}."): tensor for name, tensor in tensors.items()}
    api_table = json.loads((q / "config.json").read_text())["quantization_config"]
    from dataclasses import replace

    from splitquant.format.config import parse_table

    weight = replace(parse_table(api_table)[X], shape=(64, 64))
    with pytest.raises(TensorError, match=rf"tensor 'a\.weight\.{plane}' {damage}"):
        torch_packing.check_planes(X, weight, planes)


def test_planes_of_a_tensor_that_the_table_has_not(broken):
    """They would be taken for tensors of the model."""
    _, q = broken("scale", lambda raw: None, K3)
    config = json.loads((q / "config.json").read_text())
    config["quantization_config"]["tensors"] = {}
    (q / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        SourceError, match=r"tensor 'a\.weight\.codes' is a plane of 'a\.weight', which config\.json does not have"
    ):
        open_quantized(q)


def test_an_adapter_is_no_model(tmp_path):
    """PEFT would run a quantized one with random matrices."""
    source = write_folder(tmp_path / "m", {"base_model.model.q.lora_A.weight": normal(1, 8, 64)}, config={})
    shutil.move(source / "model.safetensors", source / "adapter_model.safetensors")
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (source / "config.json").unlink()
    with pytest.raises(SourceError, match=r"is an adapter .*quantize its base model.* or merge the two first"):
        api.quantize(source, tmp_path / "q")
    assert not (tmp_path / "q").exists()
