"""Patterns: a name is its own pattern, then globs in the order in which they were given."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.errors import SpecError
from splitquant.plan.decide import decide
from splitquant.plan.layers import Layer
from splitquant.plan.recipe import Recipe, embedding_spec, first_match, patterns, refuse_idle_patterns

WEIRD = ("layers[0].weight", "a*", "?", "[!x]", "[", "]", "a[", "b[]]", "x[0-9]", "\\*", "q.weight")
TEXT = st.text("ab01.[]*?!-", min_size=1, max_size=6)


@pytest.mark.parametrize("name", WEIRD)
def test_every_name_is_its_own_pattern(name):
    assert first_match((name,), [name]) == name
    assert first_match((name,), ["*", name]) == name  # and is found before a glob


@given(TEXT, st.lists(TEXT, max_size=5))
def test_law_a_name_finds_itself_whatever_else_is_given(name, others):
    assert first_match((name,), [*others, name]) == name


@given(st.lists(TEXT, min_size=1, max_size=3), st.lists(TEXT, max_size=5))
def test_law_what_is_found_is_one_of_the_given_and_the_first_of_its_kind(names, given_patterns):
    found = first_match(names, given_patterns)
    if found is None:
        assert all(first_match(names, [one]) is None for one in given_patterns)
        return
    before = given_patterns[: given_patterns.index(found)]
    assert not set(before) & set(names)
    if found not in names:
        assert not set(given_patterns) & set(names)
        assert all(first_match(names, [one]) is None for one in before)


def test_globs():
    assert first_match(("layers[0].weight",), ["layers[0].*"]) is None  # a class of characters: layers0.weight
    assert first_match(("layers0.weight",), ["layers[0].weight"]) == "layers[0].weight"
    assert first_match(("layers[0].weight",), ["layers[[]0].*"]) == "layers[[]0].*"
    assert first_match(("a.b", "c.d"), ["*.d", "a.*"]) == "*.d"
    assert first_match(("a.b",), ["A.*"]) is None
    assert first_match((), ["*"]) is None
    assert first_match(("a",), []) is None


def test_the_empty_name():
    """A module that is itself one layer is called ""."""
    assert first_match(("",), ["*", ""], ("",)) == ""
    plan = decide([Layer("", "linear", "F32", (64, 64), 16384)], Recipe(exclude=("",)))
    assert [decision.reason for decision in plan.decisions] == ["excluded by ''"]


def test_any_iterable_of_patterns():
    assert first_match(("a.b",), iter(["x", "a.*"])) == "a.*"
    assert first_match(("a.b",), {"a.b": 1, "*": 2}) == "a.b"


def test_a_text_is_one_pattern():
    assert patterns("a.*") == ("a.*",)
    assert patterns(["a", "b"]) == ("a", "b")
    assert patterns(()) == ()


def test_idle_patterns_are_refused():
    refuse_idle_patterns(["layers[0].weight", "b*"], ["layers[0].weight", "b1"], "tensors")
    with pytest.raises(SpecError, match=r"the pattern 'layers\[1\]\.weight' matches none of the 1 tensors$"):
        refuse_idle_patterns(["layers[1].weight"], ["layers[0].weight"], "tensors")


@pytest.mark.parametrize(
    ("said", "spec"),
    [
        ("keep", None),
        (None, None),
        (8, EMBEDDING),
        ("8", EMBEDDING),
        ("3", QuantSpec(3, 1, symmetric=True)),
        (QuantSpec(5, 1), QuantSpec(5, 1)),
    ],
    ids=str,
)
def test_specs_of_embeddings(said, spec):
    assert embedding_spec(said) == spec


@pytest.mark.parametrize("said", ["none", "", "-1", "²", "4.5", "123"])
def test_no_specs_of_embeddings(said):
    with pytest.raises(SpecError, match="expected 'keep' or a number of bits from 2 to 8"):
        embedding_spec(said)


def test_a_name_of_the_model_is_no_glob():
    """`layers[0].weight` names one tensor; as a glob it would take `layers0.weight` as well."""
    names = ("layers[0].weight", "layers0.weight")
    assert fnmatchcase(names[1], names[0])
    assert first_match(names[:1], names[:1], names) == names[0]
    assert first_match(names[1:], names[:1], names) is None
    layers = [Layer(name, "linear", "F32", (64, 64), 16384) for name in names]
    plan = decide(layers, Recipe(exclude=names[:1]))
    assert [decision.reason for decision in plan.decisions] == [f"excluded by {names[0]!r}", ""]
