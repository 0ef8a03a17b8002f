"""Texts in windows: every token is scored once, and bytes are those of the scored tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.language_models import byte_tokenizer
from splitquant.errors import SourceError, SpecError
from splitquant.evaluate.texts import Window, cut, read_text

BEGINS, BARE = byte_tokenizer(begins=True), byte_tokenizer(begins=False)


def ids(text):
    """The tokens of a text of bytes."""
    return tuple(BARE(text, add_special_tokens=False).input_ids)


def test_windows_that_begin():
    """With a token that begins texts every token is scored, and each window holds one token less of the text."""
    a, b, c, d, e = ids("abcde")
    found = cut(BEGINS, "abcde", window=3)
    assert found.windows == (Window((1, a, b), 2, 2), Window((1, c, d), 2, 2), Window((1, e), 1, 1))
    assert (found.scored, found.nbytes, found.stride, found.begins) == (5, 5, 2, True)
    assert str(found) == "5 tokens in windows of 3, each after the token that begins a text"


def test_windows_without():
    """Without one the first token of each window has nothing before it; a window of one token scores none."""
    a, b, c, d, _ = ids("abcde")
    found = cut(BARE, "abcde", window=2)
    assert found.windows == (Window((a, b), 1, 1), Window((c, d), 1, 1))
    assert (found.scored, found.nbytes, found.tokens) == (2, 2, 5)


def test_overlap():
    """With a stride every window scores what the one before did not."""
    a, b, c, d, e = ids("abcde")
    found = cut(BARE, "abcde", window=3, stride=1)
    assert found.windows == (Window((a, b, c), 2, 2), Window((b, c, d), 1, 1), Window((c, d, e), 1, 1))
    assert str(found) == "5 tokens in windows of 3, stride 1"


@given(st.integers(1, 60), st.integers(2, 20), st.integers(1, 20), st.booleans())
def test_each_token_once(length, window, stride, begins):
    """Whatever the window and the stride, every token that can be scored is, once, and in order."""
    tokenizer, text = (BEGINS if begins else BARE), "".join(chr(97 + i % 26) for i in range(length))
    body = window - begins
    stride = min(stride, body)
    lonely = 0 if begins else len(range(0, length, stride)) if stride == body else 1
    if length - lonely < 1 or (not begins and length < 2):
        return
    found = cut(tokenizer, text, window=window, stride=stride)
    scored = [token for one in found.windows for token in one.ids[-one.scored :]]
    expected = list(ids(text))
    if begins:
        assert scored == expected
    elif stride < body:
        assert scored == expected[1:]
    else:
        assert scored == [token for i, token in enumerate(expected) if i % body]
    assert found.nbytes == len(scored)
    assert all(len(one.ids) <= window for one in found.windows)


def test_bytes_of_letters():
    """A letter of two bytes counts two, whichever of its tokens is scored last."""
    found = cut(BEGINS, "aäß", window=10)
    assert (found.tokens, found.nbytes) == (5, 5)


def test_ids_are_taken_as_they_are():
    """Documents of ids begin as they do, and have no bytes."""
    found = cut(None, [[5, 6, 7], [8, 9]], window=10, tokens=4)
    assert found.windows == (Window((5, 6, 7), 2, None),)
    assert found.nbytes is None
    assert found.tokens == 4


def test_the_first_tokens():
    """Only so many."""
    assert cut(BEGINS, "abcdef", window=10, tokens=4).windows[0].ids == (1, *ids("abcd"))


def test_default_window():
    """1,024 tokens, or what the model reads."""
    assert cut(BEGINS, "abc").window == 1024
    assert cut(BEGINS, "abc", longest=64).window == 64


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": 65, "longest": 64}, "window is 65 tokens and the model reads 64 at most"),
        ({"window": 1}, "window is 1 tokens; expected 2 or more"),
        ({"window": 10, "stride": 10}, "stride is 10 tokens; expected 1 to 9"),
        ({"window": 10, "stride": 0}, "stride is 0 tokens"),
        ({"tokens": 1}, "number of tokens is 1; expected 2 or more"),
    ],
)
def test_refused(options, says):
    """What is not possible is said with what is."""
    with pytest.raises(SpecError, match=says):
        cut(BEGINS, "abc", **options)


def test_too_short():
    """One token alone cannot be scored."""
    with pytest.raises(SpecError, match="the text has 1 tokens; at least 2"):
        cut(BARE, "a")


def test_text_needs_a_tokenizer():
    """A model in memory may have none."""
    with pytest.raises(SpecError, match="has no tokenizer"):
        cut(None, "abc")


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot be read"), (b" \n", "is empty"), (b"ab\xff", r"no UTF-8 text \(byte 2\)")]
)
def test_read_text(tmp_path, content, says):
    """A file that is no text."""
    file = tmp_path / "t"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SourceError, match=says):
        read_text(file)
