"""Verification passes on good output and names whatever was damaged, lost, swapped or reported wrongly."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders.folders import (
    CONFIG,
    as_array,
    flip_byte,
    normal,
    place_of,
    raw,
    read_folder,
    read_tensors,
    safetensors_bytes,
    tiny_folder,
    tiny_sharded,
    tiny_tensors,
    write_folder,
)
from splitquant.api import dequantize, quantize, verify
from splitquant.checkpoint.quantized import open_quantized
from splitquant.core.spec import PAPER, QuantSpec
from splitquant.errors import SourceError, SplitQuantError, VerifyError
from splitquant.storage import memory

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
EXPERT = "model.layers.0.mlp.experts.gate_up_proj"
REPORT = "splitquant_report.json"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A source and what was made of it; not to be changed."""
    home = tmp_path_factory.mktemp("verify")
    source = tiny_folder(home / "m", files={"tokenizer.json": "{}", "sub/x.txt": "x"})
    quantize(source, home / "q")
    return home


@pytest.fixture
def pair(pristine, tmp_path):
    """A source and what was made of it, to be damaged."""
    shutil.copytree(pristine / "m", tmp_path / "m")
    shutil.copytree(pristine / "q", tmp_path / "q")
    return tmp_path / "m", tmp_path / "q"


def refused(pair, *says, errors=(VerifyError, SourceError)):
    """Verification must refuse the pair with these words."""
    with pytest.raises(errors) as error:
        verify(*pair)
    for text in says:
        assert text in str(error.value)


def edit_json(path, change):
    """Change a JSON file in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def rewrite(folder, change):
    """Write the folder's one shard anew after a change of its tensors."""
    file = folder / "model.safetensors"
    tensors = read_tensors(file)
    change(tensors)
    file.write_bytes(safetensors_bytes(tensors, {"format": "pt"}))


def entry(report, name):
    """The report's item of a tensor."""
    return next(item for item in report["tensors"] if item["name"] == name)


@pytest.mark.parametrize("spec", [QuantSpec(), PAPER, QuantSpec(granularity="group:16", bits=3, clusters=2)], ids=str)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "fp64"])
def test_good_output_passes(tmp_path, dtype, spec):
    """What quantize wrote is verified, with all its tensors and checksums."""
    source = tiny_folder(tmp_path / "m", dtype=dtype)
    report = quantize(source, tmp_path / "q", spec)
    verified = verify(source, tmp_path / "q")
    assert verified.report.outcomes == report.outcomes
    assert verified.tensors == len(tiny_tensors())
    assert verified.checksums == len(read_folder(tmp_path / "q"))


@pytest.mark.parametrize("strategy", ["magnitude", "residual", "lloyd"])
def test_every_strategy_passes(tmp_path, strategy):
    """The planes of every strategy are verified, those of stacked experts too."""
    source = tiny_folder(tmp_path / "m")
    quantize(source, tmp_path / "q", QuantSpec(3, 2, strategy))
    assert verify(source, tmp_path / "q").checksums == len(read_folder(tmp_path / "q"))


@pytest.mark.parametrize("plane", ["levels", "codes", "clusters"])
def test_one_flipped_bit_of_free_levels(tmp_path, plane):
    """Damage of a free level, or of what points to it, is found."""
    source = tiny_folder(tmp_path / "m")
    quantize(source, tmp_path / "q", QuantSpec(3, 2, "lloyd"))
    file = tmp_path / "q/model.safetensors"
    flip_byte(file, place_of(file, f"{EXPERT}.{plane}")[0])
    refused((source, tmp_path / "q"), EXPERT)


@pytest.mark.parametrize("model_type", ["gpt2", "llama4"])
def test_other_axes_pass(tmp_path, model_type, monkeypatch):
    """Conv1D weights and experts with inputs first are verified too, cut into windows or not."""
    tensors = {"h.0.c_fc.weight": normal(1, 40, 160), "mlp.experts.down_proj": normal(2, 3, 40, 60)}
    source = write_folder(tmp_path / "m", tensors, config={"model_type": model_type})
    quantize(source, tmp_path / "q")
    verify(source, tmp_path / "q")
    monkeypatch.setattr(memory, "WINDOW_BYTES", 5000)
    verify(source, tmp_path / "q")


def test_sharded_output_passes(tmp_path, monkeypatch):
    """Sharded folders are verified; windows do not matter."""
    source = tiny_sharded(tmp_path / "m")
    quantize(source, tmp_path / "q")
    monkeypatch.setattr(memory, "WINDOW_BYTES", 3000)
    assert verify(source, tmp_path / "q").tensors == len(tiny_tensors())


def test_nothing_lost_passes(tmp_path):
    """A tensor that came through exactly has figures that JSON and verification can hold."""
    source = write_folder(tmp_path / "m", {"a.weight": np.zeros((64, 64), np.float32)})
    quantize(source, tmp_path / "q")
    verify(source, tmp_path / "q")


PLANES = [f"{Q_PROJ}.{plane}" for plane in ("codes", "clusters", "scale", "offset", "row_scale", "shape")]
PLANES += [f"{EXPERT}.{plane}" for plane in ("codes", "scale", "shape")]
KEPT = ["model.layers.0.input_layernorm.weight", "model.position_ids", "model.layers.0.mlp.gate.weight"]


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("name", PLANES + KEPT)
def test_one_flipped_bit(pair, name, where):
    """One flipped bit in any plane or kept tensor is found, and the tensor named."""
    start, nbytes = place_of(pair[1] / "model.safetensors", name)
    flip_byte(pair[1] / "model.safetensors", start if where == "first" else start + nbytes - 1)
    refused(pair, re.sub(r"\.(codes|clusters|scale|offset|row_scale|shape)$", "", name))


@pytest.mark.parametrize("name", [*PLANES, KEPT[0]])
def test_lost_tensor(pair, name):
    """A stored tensor that is gone is named."""
    rewrite(pair[1], lambda tensors: tensors.pop(name))
    refused(pair, name)


def test_lost_quantized_tensor(pair):
    """A tensor that is gone with all its planes, its configuration and its report is missed."""
    rewrite(pair[1], lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(Q_PROJ)])
    edit_json(pair[1] / "config.json", lambda c: c["quantization_config"]["tensors"].pop(Q_PROJ))
    refused(pair, Q_PROJ, "missing", errors=VerifyError)
    edit_json(pair[1] / REPORT, lambda r: r["tensors"].remove(entry(r, Q_PROJ)))
    refused(pair, Q_PROJ, "not in the report", errors=VerifyError)


def test_extra_tensor(pair):
    """A tensor that the source has not is named."""
    rewrite(pair[1], lambda tensors: tensors.update(extra=raw(np.float32(1))))
    refused(pair, "'extra' is not in the source", errors=VerifyError)


def test_swapped_tensors(pair):
    """Two tensors of the same shape with swapped contents are found."""
    other = Q_PROJ.replace("0", "1")

    def swap(tensors):
        for plane in ("codes", "clusters", "scale", "offset", "row_scale"):
            a, b = f"{Q_PROJ}.{plane}", f"{other}.{plane}"
            tensors[a], tensors[b] = tensors[b], tensors[a]

    rewrite(pair[1], swap)
    refused(pair, Q_PROJ, "checksum", errors=VerifyError)


def test_swapped_tensors_with_swapped_report(pair):
    """Swapped tensors whose report was swapped along are found by their error figures."""
    other = Q_PROJ.replace("0", "1")
    planes = ("codes", "clusters", "scale", "offset", "row_scale", "shape")

    def swap(tensors):
        for plane in planes:
            a, b = f"{Q_PROJ}.{plane}", f"{other}.{plane}"
            tensors[a], tensors[b] = tensors[b], tensors[a]

    def swap_report(report):
        a, b = entry(report, Q_PROJ), entry(report, other)
        a["name"], b["name"] = other, Q_PROJ
        for item in (a, b):
            item["checksums"] = {f"{item['name']}.{k.rsplit('.', 1)[1]}": v for k, v in item["checksums"].items()}

    rewrite(pair[1], swap)
    edit_json(pair[1] / REPORT, swap_report)
    refused(pair, "error figures", errors=VerifyError)


def test_another_source(pair):
    """A folder is not verified against another model of the same shapes."""
    tiny_folder(pair[0], seed=50)
    refused(pair, errors=VerifyError)


def test_source_with_another_kept_tensor(pair):
    """A kept tensor is compared with the source's, not with its checksum alone."""
    flip_byte(pair[0] / "model.safetensors", place_of(pair[0] / "model.safetensors", KEPT[0])[0])
    refused(pair, KEPT[0], "differs from the source", errors=VerifyError)


def test_source_with_another_shape(pair):
    """A tensor of another shape is named."""
    tensors = tiny_tensors()
    tensors[Q_PROJ] = normal(1, 24, 96)
    write_folder(pair[0], tensors, config=CONFIG)
    refused(pair, Q_PROJ, "shape", errors=VerifyError)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("figures.noise", 0.0),
        ("figures.signal", 1.0),
        ("figures.max_error", 1e-9),
        ("figures.weights", 1),
        ("figures", None),
        ("spec.bits", 5),
        ("spec", None),
        ("checksums", {}),
        ("checksums", None),
        ("checksums", []),
        ("shape", [1, 2]),
        ("shape", 5),
        ("source_bytes", 1),
        ("stored_bytes", 1),
        ("stored_bytes", "1"),
        ("dtype", "F32"),
        ("outcome", "kept"),
        ("outcome", "unheard of"),
        ("name", "other"),
        ("unknown", 1),
    ],
)
def test_changed_report(pair, key, value):
    """A report that says anything else than what is there is refused; so is one that makes no sense."""

    def change(report):
        item = entry(report, Q_PROJ)
        *path, last = key.split(".")
        for part in path:
            item = item[part]
        item[last] = value

    edit_json(pair[1] / REPORT, change)
    refused(pair)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"tensors": 1}', '{"tensors": [1]}', '{"tensors": {"a": 1}}'])
def test_no_report(pair, text):
    """A damaged report is a SourceError that names it."""
    (pair[1] / REPORT).write_text(text)
    refused(pair, REPORT, errors=SourceError)


def test_report_of_another_version(pair):
    """A report of a version that is not known is refused."""
    edit_json(pair[1] / REPORT, lambda report: report.update(report_version=99))
    refused(pair, REPORT, errors=SourceError)


@pytest.mark.parametrize("name", [REPORT, "tokenizer.json", "sub/x.txt", "model.safetensors", "config.json"])
def test_lost_file(pair, name):
    """A file that is gone is named."""
    (pair[1] / name).unlink()
    refused(pair, name.replace("model.safetensors", "no .safetensors file"))


def test_lost_shard(tmp_path):
    """A shard that is gone is named."""
    pair = tiny_sharded(tmp_path / "m"), tmp_path / "q"
    quantize(*pair)
    (pair[1] / "model-00002-of-00003.safetensors").unlink()
    refused(pair, "model-00002-of-00003.safetensors", errors=SourceError)


def set_item(key, value):
    """A change of the configuration of one tensor."""
    return lambda config: config["quantization_config"]["tensors"][Q_PROJ].update({key: value})


def set_key(key, value):
    """A change of the quantization configuration."""
    return lambda config: config["quantization_config"].update({key: value})


CONFIG_CHANGES = {
    "no configuration": lambda config: config.pop("quantization_config"),
    "another method": set_key("quant_method", "gptq"),
    "later version": set_key("format_version", 3),
    "version as text": set_key("format_version", "1"),
    "unknown key": set_key("more", 1),
    "no specs": lambda config: config["quantization_config"].pop("specs"),
    "specs null": set_key("specs", None),
    "specs of texts": set_key("specs", ["x"]),
    "unknown key in a spec": lambda config: config["quantization_config"]["specs"][0].update(more=1),
    "bits out of range": lambda config: config["quantization_config"]["specs"][0].update(bits=9),
    "bits a text": lambda config: config["quantization_config"]["specs"][0].update(bits="4"),
    "bits a list": lambda config: config["quantization_config"]["specs"][0].update(bits=[4]),
    "granularity a number": lambda config: config["quantization_config"]["specs"][0].update(granularity=4),
    "granularity odd": lambda config: config["quantization_config"]["specs"][0].update(granularity="group:²"),
    "clusters a float": lambda config: config["quantization_config"]["specs"][0].update(clusters=2.5),
    "tensors a list": set_key("tensors", ["a"]),
    "tensors a text": set_key("tensors", "ab"),
    "tensors null": set_key("tensors", None),
    "tensor a text": lambda config: config["quantization_config"]["tensors"].update({Q_PROJ: "x"}),
    "tensor that is not there": lambda config: config["quantization_config"]["tensors"].update(
        {"nowhere": {"spec": 0, "dtype": "bf16", "axis": 0}}
    ),
    "unknown key in a tensor": set_item("more", 1),
    "spec beyond": set_item("spec", 99),
    "spec negative": set_item("spec", -1),
    "spec a text": set_item("spec", "0"),
    "another spec": lambda config: set_item("spec", 1 - config["quantization_config"]["tensors"][Q_PROJ]["spec"])(
        config
    ),
    "unknown dtype": set_item("dtype", "fp8"),
    "another dtype": set_item("dtype", "fp16"),
    "dtype a list": set_item("dtype", []),
    "axis beyond": set_item("axis", 2),
    "axis negative": set_item("axis", -1),
    "axis a text": set_item("axis", "x"),
    "axis infinite": set_item("axis", float("inf")),
    "axis a fraction": set_item("axis", 0.5),
    "another axis": set_item("axis", 1),
    "stack": set_item("stack", True),
    "stack a text": set_item("stack", "no"),
}


@pytest.mark.parametrize("change", CONFIG_CHANGES)
def test_changed_config(pair, change):
    """A configuration that does not fit is refused, and never anything but an error of ours."""
    if change == "another axis":  # the square tensor's planes have the same shapes: only the figures can tell
        edit_json(pair[1] / "config.json", CONFIG_CHANGES[change])
        refused(pair, Q_PROJ, errors=VerifyError)
        return
    edit_json(pair[1] / "config.json", CONFIG_CHANGES[change])
    refused(pair, str(pair[1]))


def test_changed_rest_of_config(pair):
    """The other keys of config.json are the source's."""
    edit_json(pair[1] / "config.json", lambda config: config.update(model_type="other"))
    refused(pair, "config.json", errors=VerifyError)


def test_padding_bits_are_checked(tmp_path):
    """Bits after the last value of a row must be 0, and checksums see them."""
    source = write_folder(tmp_path / "m", {"a.weight": normal(1, 64, 63)})
    quantize(source, tmp_path / "q")
    start, nbytes = place_of(tmp_path / "q/model.safetensors", "a.weight.codes")
    flip_byte(tmp_path / "q/model.safetensors", start + nbytes - 1, 0x80)
    refused((source, tmp_path / "q"), "a.weight.codes", errors=VerifyError)


@pytest.mark.parametrize(
    ("shape", "says"),
    [([64, 0], "positive"), ([-64, -64], "positive"), ([2**62, 2**62], ""), ([64], ""), ([1] * 9, "shape")],
    ids=str,
)
def test_hostile_shape_plane(tmp_path, shape, says):
    """A shape that does not fit the planes is refused before anything of its size is made."""
    source = write_folder(tmp_path / "m", {"a.weight": normal(1, 64, 64)})
    quantize(source, tmp_path / "q")
    rewrite(tmp_path / "q", lambda tensors: tensors.update({"a.weight.shape": raw(np.array(shape, np.int64))}))
    with pytest.raises(SourceError, match=r"'a\.weight") as error:
        open_quantized(tmp_path / "q")
    assert says in str(error.value)


@settings(
    max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(["config.json", REPORT, "model.safetensors"]),
    at=st.floats(0, 1, exclude_max=True),
    mask=st.integers(1, 255),
    cut=st.booleans(),
)
def test_no_damage_gives_a_traceback(tmp_path_factory, pristine, name, at, mask, cut):
    """A flipped byte or a cut anywhere is refused by an error of ours, or harmless; weights are never other ones."""
    home = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(pristine / "q", home / "q")
    file = home / "q" / name
    position = int(at * file.stat().st_size)
    lost = file.read_bytes()[position:] if cut else b""
    if cut:
        file.write_bytes(file.read_bytes()[:position])
    else:
        flip_byte(file, position, mask)
    try:
        verify(pristine / "m", home / "q")
    except SplitQuantError:
        return
    assert not lost.strip()  # the last line's end may go
    dequantize(pristine / "q", home / "f1")
    dequantize(home / "q", home / "f2")
    assert read_folder(home / "f1") == read_folder(home / "f2")


def test_verifying_changes_nothing(pair):
    """Verifying changes neither folder, and can be done again."""
    first, second = verify(*pair), verify(*pair)
    assert first == second
    assert as_array(read_folder(pair[1])[f"{Q_PROJ}.shape"]).tolist() == [48, 48]
