"""A text as the windows of tokens that a language model reads, each token scored once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitquant.errors import SourceError, SpecError

WINDOW = 1024


@dataclass(frozen=True, slots=True)
class Window:
    """Some tokens that are read together; the last `scored` of them count, and stand for `nbytes` bytes of text."""

    ids: tuple[int, ...]
    scored: int
    nbytes: int | None


@dataclass(frozen=True, slots=True)
class Windows:
    """A text in windows, and how it was cut.

    window: tokens read together, at most. stride: tokens from one window to the next. tokens: of the text, that were taken.
    begins: whether every window begins with the token with which the tokenizer begins a text.
    """

    windows: tuple[Window, ...]
    window: int
    stride: int
    tokens: int
    begins: bool

    @property
    def scored(self) -> int:
        """How many tokens count."""
        return sum(one.scored for one in self.windows)

    @property
    def nbytes(self) -> int | None:
        """The bytes of text that the scored tokens stand for; None where tokens came without a text."""
        sizes = [one.nbytes for one in self.windows]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def __str__(self) -> str:
        begins = ", each after the token that begins a text" if self.begins else ""
        overlap = "" if self.stride >= self.window - self.begins else f", stride {self.stride}"
        return f"{self.tokens:,} tokens in windows of {self.window:,}{overlap}{begins}"


def read_text(path: Path) -> str:
    """The text of a file; SourceError where it is none, or is empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: is no UTF-8 text (byte {error.start}); expected a plain text file") from error
    if not text.strip():
        raise SourceError(f"{path}: is empty; expected a plain text file")
    return text


def cut(  # noqa: PLR0913 - the ways a text is cut
    tokenizer: Any,
    text: str | Sequence[Sequence[int]],
    *,
    window: int | None = None,
    stride: int | None = None,
    tokens: int | None = None,
    longest: int | None = None,
) -> Windows:
    """Cut a text, or documents of token ids, into windows.

    Every token is scored once, with at least the window's length minus the stride before it, but for those of the first
    window. Where the tokenizer begins texts with a token of its own, every window begins with it and all its other tokens can
    be scored; else the first one of a document, or of windows that do not overlap, has nothing before it and is not scored.
    Documents of ids are taken as they are.

    Args:
        tokenizer: of transformers; None is enough for ids.
        text: one document as text, or many as ids.
        window: tokens read together, at most; None: 1,024, or what the model reads where that is less.
        stride: tokens from one window to the next; None: windows do not overlap.
        tokens: only so many of the text; None: all.
        longest: the most that the model can read.

    Raises:
        SpecError: for a window, stride or number of tokens that is not possible.
    """
    if isinstance(text, str):
        ids, ends, first = _tokenized(tokenizer, text)
        documents = [(ids, ends)]
    else:
        documents, first = [(tuple(document), None) for document in text], None
    if window is None:
        window = WINDOW if longest is None else min(WINDOW, longest)
    body = window - (first is not None)
    _check(window, body, stride, tokens, longest)
    step = body if stride is None else stride
    found: list[Window] = []
    taken, left = 0, tokens
    for ids, ends in documents:
        part = ids if left is None else ids[:left]
        left = None if left is None else left - len(part)
        taken += len(part)
        found += _document(part, ends, first, body, step)
    if not found:
        raise SpecError(f"the text has {taken} tokens; at least 2 are needed to score one after another")
    return Windows(tuple(found), window, step, taken, begins=first is not None)


def _check(window: int, body: int, stride: int | None, tokens: int | None, longest: int | None) -> None:
    if longest is not None and window > longest:
        raise SpecError(f"the window is {window} tokens and the model reads {longest} at most; give a smaller --window")
    if body < 1 or window < 2:
        raise SpecError(f"the window is {window} tokens; expected 2 or more")
    if stride is not None and not 1 <= stride <= body:
        raise SpecError(f"the stride is {stride} tokens; expected 1 to {body}, so that no token is left out")
    if tokens is not None and tokens < 2:
        raise SpecError(f"the number of tokens is {tokens}; expected 2 or more")


def _document(
    ids: tuple[int, ...], ends: tuple[int, ...] | None, first: int | None, body: int, step: int
) -> list[Window]:
    found: list[Window] = []
    before = () if first is None else (first,)
    done = 0 if first is not None else 1  # so many tokens are scored, or can never be
    for start in range(0, len(ids), step):
        end = min(start + body, len(ids))
        since = max(done, start if first is not None else start + 1)
        if end > since:
            nbytes = None if ends is None else ends[end - 1] - (ends[since - 1] if since else 0)
            found.append(Window((*before, *ids[start:end]), end - since, nbytes))
        done = max(done, end)
        if end == len(ids):
            break
    return found


def _tokenized(tokenizer: Any, text: str) -> tuple[tuple[int, ...], tuple[int, ...] | None, int | None]:
    """The ids of a text, the bytes of text up to the end of each, and the id with which the tokenizer begins texts."""
    if tokenizer is None:
        raise SpecError("the model has no tokenizer, so it reads token ids only; give a folder with a tokenizer")
    first = beginning(tokenizer)
    options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
    if not getattr(tokenizer, "is_fast", False):
        ids = tuple(tokenizer(text, **options)["input_ids"])
        return ids, None, first
    found = tokenizer(text, return_offsets_mapping=True, **options)
    ends, position, nbytes = [], 0, 0
    for _, end in found["offset_mapping"]:
        if end > position:
            nbytes += len(text[position:end].encode("utf-8"))
            position = end
        ends.append(nbytes)
    return tuple(found["input_ids"]), tuple(ends), first


def beginning(tokenizer: Any) -> int | None:
    """The id that a tokenizer puts before every text; None where it puts none."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    own = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) > len(own) and ids[0] == getattr(tokenizer, "bos_token_id", None) and ids[0] != own[0]:
        return int(ids[0])
    return None
