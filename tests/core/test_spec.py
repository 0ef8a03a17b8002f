"""What a spec accepts, what it refuses and how it is stored."""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from builders.any_spec import specs
from splitquant.core.granularity import Granularity
from splitquant.core.spec import CLUSTER_ID_BITS, EMBEDDING, PAPER, WIDTHS, QuantSpec
from splitquant.core.strategies import LAYOUTS, MAX_CLUSTERS
from splitquant.errors import SpecError, SplitQuantError

SPECS = specs(granularities=["tensor", "channel", "group:2", "group:32", "group:4096"])


@dataclass(frozen=True)
class Invalid:
    """Options that make no spec, and what the message must say."""

    name: str
    options: dict[str, Any]
    message: str


INVALID = [
    Invalid("bits 1", {"bits": 1}, r"bits is 1; expected 2 to 8"),
    Invalid("bits 9", {"bits": 9}, r"bits is 9; expected 2 to 8"),
    Invalid("bits 0", {"bits": 0}, r"bits is 0; expected 2 to 8"),
    Invalid("bits negative", {"bits": -4}, r"bits is -4"),
    Invalid("bits text", {"bits": "4"}, r"bits is '4'"),
    Invalid("bits none", {"bits": None}, r"bits is None"),
    Invalid("bits true", {"bits": True}, r"bits is True"),
    Invalid("bits fraction", {"bits": 4.5}, r"bits is 4\.5"),
    Invalid("bits float", {"bits": 4.0}, r"bits is 4\.0"),
    Invalid("bits list", {"bits": [4]}, r"bits is \[4\]"),
    Invalid("clusters 9", {"clusters": 9}, r"clusters is 9; expected 1 to 8"),
    Invalid("clusters negative", {"clusters": -1}, r"clusters is -1; expected 1 to 8"),
    Invalid("clusters text", {"clusters": "3"}, r"clusters is '3'"),
    Invalid("clusters none", {"clusters": None}, r"clusters is None"),
    Invalid("clusters float", {"clusters": 3.0}, r"clusters is 3\.0"),
    Invalid("clusters true", {"clusters": True}, r"clusters is True"),
    Invalid("clusters false", {"clusters": False}, r"clusters is False"),
    Invalid("clusters list", {"clusters": [1]}, r"clusters is \[1\]"),
    Invalid(
        "strategy unknown",
        {"strategy": "random"},
        r"strategy is 'random'; expected one of min_error, kmeans, magnitude, residual, lloyd",
    ),
    Invalid("strategy none", {"strategy": None}, r"strategy is None"),
    Invalid("layout unknown", {"layout": "stacked"}, r"layout is 'stacked'; expected one of fused, parallel"),
    Invalid("layout none", {"layout": None}, r"layout is None"),
    Invalid("symmetric number", {"symmetric": 1}, r"symmetric is 1; expected true or false"),
    Invalid("symmetric text", {"symmetric": "yes"}, r"symmetric is 'yes'"),
    Invalid("symmetric none", {"symmetric": None}, r"symmetric is None"),
    Invalid("zero_points", {"zero_points": "row"}, r"zero_points is 'row'; expected one of own, shared"),
    Invalid("polish number", {"polish": 1}, r"polish is 1; expected true or false"),
    Invalid("polish text", {"polish": "no"}, r"polish is 'no'"),
    Invalid(
        "residual beyond a byte",
        {"strategy": "residual", "bits": 4, "clusters": 3},
        r"residual with 3 clusters of 4 bits; expected clusters \* bits of at most 8",
    ),
    Invalid(
        "residual of two wide parts",
        {"strategy": "residual", "bits": 5, "clusters": 2},
        r"residual with 2 clusters of 5 bits",
    ),
    Invalid(
        "lloyd parallel", {"strategy": "lloyd", "layout": "parallel"}, r"lloyd with a parallel layout or symmetric"
    ),
    Invalid("lloyd symmetric", {"strategy": "lloyd", "symmetric": True}, r"lloyd with a parallel layout or symmetric"),
    Invalid(
        "lloyd of many levels",
        {"strategy": "lloyd", "bits": 6, "clusters": 5},
        r"lloyd with 5 clusters of 6 bits; expected clusters \* 2\*\*bits of at most 256",
    ),
    Invalid(
        "granularity unknown",
        {"granularity": "row"},
        r"granularity is 'row'; expected 'tensor', 'channel' or 'group:N'",
    ),
    Invalid("granularity empty", {"granularity": ""}, r"granularity is ''"),
    Invalid("granularity none", {"granularity": None}, r"granularity is None"),
    Invalid("granularity number", {"granularity": 32}, r"granularity is 32"),
    Invalid("group without size", {"granularity": "group"}, r"granularity is 'group'"),
    Invalid("group empty size", {"granularity": "group:"}, r"granularity is 'group:'"),
    Invalid("group 0", {"granularity": "group:0"}, r"N of at least 2"),
    Invalid("group 1", {"granularity": "group:1"}, r"N of at least 2"),
    Invalid("group negative", {"granularity": "group:-32"}, r"N of at least 2"),
    Invalid("group fraction", {"granularity": "group:3.5"}, r"N of at least 2"),
    Invalid("group spaces", {"granularity": "group: 32"}, r"N of at least 2"),
    Invalid("group superscript", {"granularity": "group:²"}, r"N of at least 2"),
    Invalid("group other digits", {"granularity": "group:\u0663\u0662"}, r"N of at least 2"),
    Invalid("group leading zero", {"granularity": "group:032"}, r"N of at least 2"),
    Invalid("group endless", {"granularity": "group:" + "9" * 5000}, r"N of at least 2"),
    Invalid("channel with size", {"granularity": "channel:4"}, r"granularity is 'channel:4'"),
    Invalid("upper case", {"granularity": "Tensor"}, r"granularity is 'Tensor'"),
]


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case.name)
def test_invalid_options_are_refused(case):
    """Every option out of its range raises SpecError, a ValueError, that names option and value."""
    with pytest.raises(SpecError, match=case.message) as caught:
        QuantSpec(**case.options)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, SplitQuantError)


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case.name)
def test_invalid_json_is_refused(case):
    """What the constructor refuses, the JSON reader refuses too."""
    with pytest.raises(SpecError, match=case.message):
        QuantSpec.from_dict(case.options)


def test_defaults():
    """A spec without options is INT4, least error, a scale per channel, asymmetric, fused with four clusters."""
    assert QuantSpec() == QuantSpec(4, 4, "min_error", "channel", symmetric=False, layout="fused")


def test_default_clusters_by_layout():
    """0 clusters means 4 where ids are stored and 3, as in the paper, where parts are."""
    assert QuantSpec(layout="fused").clusters == 4
    assert QuantSpec(layout="parallel").clusters == 3


def test_paper_preset():
    """The preset is SplitQuantV2 as published: INT4, three k-means clusters of the tensor, zero in every grid."""
    assert PAPER.to_dict() == {
        "bits": 4,
        "clusters": 3,
        "strategy": "kmeans",
        "granularity": "tensor",
        "symmetric": False,
        "layout": "parallel",
        "polish": False,
        "zero_points": "shared",
    }
    assert PAPER.zero_in_grid


def test_embedding_preset():
    """Embeddings are plain symmetric INT8 with a scale per row, and store no cluster ids."""
    assert QuantSpec(8, 1, granularity="channel", symmetric=True) == EMBEDDING
    assert EMBEDDING.cluster_bits == 0


@pytest.mark.parametrize("bits", range(2, 9))
def test_width_facts(bits):
    """A symmetric grid is centred in the codes and has as many steps to either side as fit without code 0."""
    width = QuantSpec(bits=bits).width
    assert width.bits == bits
    assert width.codes == 2**bits
    assert width.symmetric_zero == 2 ** (bits - 1)
    assert width.symmetric_zero - width.symmetric_steps == 1
    assert width.symmetric_zero + width.symmetric_steps == width.codes - 1


def test_widths_are_all_and_read_only():
    """The table holds 2 to 8 bits, and nobody can change it."""
    assert list(WIDTHS) == list(range(2, 9))
    with pytest.raises(TypeError):
        WIDTHS[9] = WIDTHS[8]


def test_cluster_id_bits():
    """The bits of an id are as docs/format.md says: enough for k ids and one less is too few."""
    assert [CLUSTER_ID_BITS[k] for k in range(1, MAX_CLUSTERS + 1)] == [0, 1, 2, 2, 3, 3, 3, 3]
    assert all(2 ** (bits - 1) < k <= 2**bits for k, bits in CLUSTER_ID_BITS.items() if k > 1)
    with pytest.raises(TypeError):
        CLUSTER_ID_BITS[9] = 4


@dataclass(frozen=True)
class Groups:
    """A granularity, a row, and the row_scales that it must have."""

    granularity: str
    cols: int
    size: int
    groups: int


@pytest.mark.parametrize(
    "case",
    [
        Groups("tensor", 64, 0, 0),
        Groups("channel", 64, 64, 1),
        Groups("channel", 1, 1, 1),
        Groups("group:32", 64, 32, 2),
        Groups("group:32", 65, 32, 3),
        Groups("group:32", 31, 32, 1),
        Groups("group:32", 32, 32, 1),
    ],
    ids=str,
)
def test_groups_of_a_row(case):
    """A row has one row_scale per begun group, one per channel, none for the tensor."""
    spec = QuantSpec(granularity=case.granularity)
    assert (spec.group_size(case.cols), spec.groups(case.cols)) == (case.size, case.groups)


@settings(max_examples=100, deadline=None)
@given(SPECS)
def test_json_round_trip(spec):
    """A spec comes back from JSON equal, with every field spelled out."""
    stored = json.loads(json.dumps(spec.to_dict()))
    assert QuantSpec.from_dict(stored) == spec
    fields = {"bits", "clusters", "strategy", "granularity", "symmetric", "layout", "polish"}
    assert set(stored) == {*fields, "zero_points"}
    assert QuantSpec.from_stored(spec.to_stored()) == spec
    assert set(spec.to_stored()) == fields | ({"zero_points"} if spec.zero_points == "own" else set())
    assert stored["clusters"] > 0


def test_who_has_own_zero_points():
    """Asymmetric plain grids with row_scales, unless told otherwise; for all others there is no such choice."""
    assert QuantSpec(clusters=1).zero_points == QuantSpec(clusters=1, granularity="group:32").zero_points == "own"
    assert QuantSpec(clusters=1, zero_points="shared").zero_points == "shared"
    for others in ({}, {"symmetric": True}, {"granularity": "tensor"}, {"strategy": "lloyd"}):
        spec = QuantSpec(**{"clusters": 1 if others else 4, **others, "zero_points": "own"})
        assert spec.zero_points == "shared"


def test_specs_of_older_files_are_shared():
    """LAW: a stored spec without the field means what it meant before there was one."""
    old = {"bits": 4, "clusters": 1, "strategy": "min_error", "granularity": "channel", "symmetric": False}
    spec = QuantSpec.from_stored({**old, "layout": "fused", "polish": False})
    assert (spec.zero_points, spec.polish) == ("shared", False)
    with pytest.raises(SpecError, match="zero_points is 'own'; those of INT4 plain channel symmetric are shared"):
        QuantSpec.from_stored({**old, "symmetric": True, "zero_points": "own"})


def test_from_dict_fills_defaults():
    """A stored spec may leave fields out."""
    assert QuantSpec.from_dict({"bits": 2}) == QuantSpec(bits=2)
    assert QuantSpec.from_dict({}) == QuantSpec()


def test_unknown_key_is_refused():
    """A key that no field has is an error that names it and the keys there are."""
    with pytest.raises(SpecError, match=r"unknown key 'width'.*known keys: bits, clusters, granularity"):
        QuantSpec.from_dict({"bits": 4, "width": 4})


def test_specs_are_values():
    """Specs are frozen, hashable, and equal where their fields are."""
    assert len({QuantSpec(), QuantSpec(clusters=4), QuantSpec(clusters=3)}) == 2
    with pytest.raises(AttributeError):
        QuantSpec().bits = 8


def test_a_granularity_is_taken_as_a_value_or_as_text():
    """Both make the same spec, which holds the value; so does a changed copy, and a value that is none is refused."""
    spec = QuantSpec(granularity=Granularity("group", 64))
    assert spec == QuantSpec(granularity="group:64")
    assert hash(spec) == hash(QuantSpec(granularity="group:64"))
    assert spec.granularity == Granularity("group", 64)
    assert replace(spec, granularity="channel").granularity == Granularity("channel")
    assert spec.to_dict()["granularity"] == "group:64"
    with pytest.raises(SpecError, match=r"granularity is 'group:1'"):
        QuantSpec(granularity=Granularity("group", 1))


def test_numpy_integers_stay_json():
    """A spec made with NumPy integers is refused, or stores plain ones."""
    try:
        spec = QuantSpec(bits=np.int64(4), clusters=np.int64(2))
    except SpecError:
        return
    assert json.loads(json.dumps(spec.to_dict()))["bits"] == 4


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (QuantSpec(), "INT4 k=4 min_error channel"),
        (EMBEDDING, "INT8 plain channel symmetric"),
        (PAPER, "INT4 k=3 kmeans tensor parallel"),
        (QuantSpec(2, 1, granularity="group:32"), "INT2 plain group:32"),
        (QuantSpec(polish=False), "INT4 k=4 min_error channel unpolished"),
        (QuantSpec(clusters=1), "INT4 plain channel"),
        (QuantSpec(clusters=1, polish=False), "INT4 plain channel unpolished"),
        (QuantSpec(clusters=1, zero_points="shared"), "INT4 plain channel shared"),
        (QuantSpec(clusters=1, zero_points="shared", polish=True), "INT4 plain channel shared polished"),
        (QuantSpec(clusters=1, granularity="tensor"), "INT4 plain tensor"),
        (QuantSpec(strategy="residual"), "INT4 k=2 residual channel parallel"),
        (QuantSpec(strategy="lloyd"), "INT4 k=4 lloyd channel"),
        (QuantSpec(strategy="magnitude", clusters=2), "INT4 k=2 magnitude channel symmetric"),
    ],
)
def test_text_form(spec, text):
    """A spec in one line, for logs and tables; what is the default goes without saying."""
    assert str(spec) == text


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("clusters", [1, 2])
def test_zero_in_grid(clusters, symmetric, layout):
    """Only the asymmetric grids of several fused clusters may lack zero."""
    spec = QuantSpec(clusters=clusters, symmetric=symmetric, layout=layout)
    assert spec.zero_in_grid == (layout == "parallel" or symmetric or clusters == 1)
