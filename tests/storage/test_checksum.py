"""Checksums computed apart join to the checksum of the whole."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitquant.storage.checksum import Checksum, join


def of(text):
    """The checksum of some bytes."""
    return Checksum.of(np.frombuffer(text, np.uint8))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_join_is_the_crc_of_the_whole(pieces):
    """LAW: join(of(a), of(b), ...) = zlib.crc32(a + b + ...), for any cut and any empty piece."""
    whole = b"".join(pieces)
    assert join(map(of, pieces)) == Checksum(zlib.crc32(whole), len(whole))


@pytest.mark.parametrize("size", [1, 7, 8, 4096, 1_000_003])
def test_join_of_large_pieces(size):
    """The law holds for pieces of any length, zeros too."""
    data = bytes(size) + bytes(i % 251 for i in range(size))
    pieces = [data[:1], data[1:size], data[size:]]
    assert join(map(of, pieces)).crc == zlib.crc32(data)


def test_join_is_associative():
    """Joined checksums join again."""
    a, b, c = (of(text) for text in (b"one", b"", b"three"))
    assert join([join([a, b]), c]) == join([a, join([b, c])]) == of(b"onethree")


def test_text_form():
    """A checksum prints as eight hexadecimal digits."""
    assert str(of(b"")) == "00000000"
    assert str(of(b"123456789")) == "cbf43926"  # the check value of CRC-32
