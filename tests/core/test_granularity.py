"""A granularity is one value, whatever text it came from."""

import pytest

from splitquant.core.granularity import Granularity


@pytest.mark.parametrize("text", ["tensor", "channel", "group:2", "group:32", "group:1000"])
def test_round_trip(text):
    """A granularity prints as it is written."""
    assert str(Granularity.parse(text)) == text


def test_values():
    """Equal where kind and size are, hashable, frozen; and never equal to a text, which would hide a forgotten question."""
    assert len({Granularity.parse("group:4"), Granularity("group", 4), Granularity("group", 8)}) == 2
    assert Granularity("tensor") != "tensor"
    with pytest.raises(AttributeError):
        Granularity("tensor").kind = "channel"
