"""The table in config.json: there and back, and wrong in every way."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.any_spec import specs
from splitquant.core.spec import EMBEDDING, PAPER, QuantSpec
from splitquant.errors import SourceError
from splitquant.format.config import parse_table, table_to_dict, with_config, without_config
from splitquant.format.weight import Weight

WEIGHTS = st.builds(
    lambda axis, spec, kind, stack: Weight((), axis + stack, spec, kind, stack),
    st.integers(0, 3),
    specs(),
    st.sampled_from(["bf16", "fp16", "fp32"]),
    st.booleans(),
)
TABLE = {
    "a.weight": Weight((), 0, QuantSpec(), "bf16"),
    "b.experts": Weight((), 2, PAPER, "fp32", stack=True),
    "c.weight": Weight((), 0, QuantSpec(), "fp16"),
    "lm_head.weight": Weight((), 0, EMBEDDING, "bf16"),
}


@given(st.dictionaries(st.text(max_size=12), WEIGHTS, max_size=8))
def test_there_and_back(table):
    """LAW: all of a weight but its shape comes back, and the same table gives the same text."""
    data = table_to_dict(table)
    assert parse_table(json.loads(json.dumps(data))) == table
    assert list(table_to_dict(parse_table(data))) == list(data)
    assert table_to_dict(parse_table(data)) == data


def test_shapes_are_not_in_it():
    """They are read from the planes called `shape`."""
    shaped = {name: replace(weight, shape=(8, 8, 8)) for name, weight in TABLE.items()}
    assert table_to_dict(shaped) == table_to_dict(TABLE)


def test_specs_are_written_once():
    data = table_to_dict(TABLE)
    assert [QuantSpec.from_dict(spec) for spec in data["specs"]] == [QuantSpec(), PAPER, EMBEDDING]
    assert [item["spec"] for item in data["tensors"].values()] == [0, 1, 0, 2]
    assert ["stack" in item for item in data["tensors"].values()] == [False, True, False, False]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(colour="red"), "has the unknown key 'colour' in quantization_config"),
        (lambda data: data.update(format_version=3), "has format_version 3 and this splitquant reads 1 and 2"),
        (lambda data: data.update(format_version="1"), "has format_version '1'"),
        (lambda data: data.pop("specs"), "has a damaged quantization_config"),
        (lambda data: data.update(tensors=[1]), "has a damaged quantization_config"),
        (lambda data: data["specs"][0].update(bits=9), "bits is 9"),
        (lambda data: data["tensors"]["a.weight"].update(spec=3), r"has spec 3; expected 0 to 2"),
        (lambda data: data["tensors"]["a.weight"].update(spec=True), "has spec True"),
        (lambda data: data["tensors"]["a.weight"].update(dtype="int8"), "has dtype 'int8'"),
        (lambda data: data["tensors"]["b.experts"].update(axis=0), "has axis 0 and stack True"),
        (lambda data: data["tensors"]["a.weight"].update(axis=-1), "has axis -1"),
        (lambda data: data["tensors"]["a.weight"].update(more=1), "has the unknown key 'more'"),
    ],
)
def test_what_is_not_as_it_must_be(change, says):
    """The file is named, and the tensor where it is one."""
    data = json.loads(json.dumps(table_to_dict(TABLE)))
    change(data)
    with pytest.raises(SourceError, match=f"^m/config.json: .*{says}"):
        parse_table(data, "m/config.json")


def test_nested_configurations_get_the_table_too():
    """A tower is loaded by the configuration nested in its folder's; options that are no models stay as they are."""
    table = {"quant_method": "splitquant"}
    config = {
        "model_type": "a",
        "text_config": {"hidden_size": 3},
        "thinker_config": {"model_type": "b", "audio_config": {"model_type": "c"}},
        "attn_config": {"model_type": "", "clip": 8},
        "rope_scaling": {"factor": 2.0},
    }
    found = with_config(config, table)
    assert found == {
        "model_type": "a",
        "text_config": {"hidden_size": 3, "quantization_config": table},
        "thinker_config": {
            "model_type": "b",
            "audio_config": {"model_type": "c", "quantization_config": table},
            "quantization_config": table,
        },
        "attn_config": {"model_type": "", "clip": 8},
        "rope_scaling": {"factor": 2.0},
        "quantization_config": table,
    }
    assert without_config(found) == config
