"""JSON objects in small files: what is none is one error that names the file."""

from __future__ import annotations

import pytest

from splitquant.errors import SourceError, SpecError
from splitquant.storage.json_file import read_edited_json, read_json


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"tensors": {"x": "keep", "x": {"bits": 4}}}'])
def test_a_key_twice(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(SpecError, match=r"p\.json: has the key '[ax]' twice; leave one of them"):
        read_edited_json(tmp_path / "p.json")
    assert read_json(tmp_path / "p.json")  # of files that nobody edits the last one counts, as everywhere


@pytest.mark.parametrize(("read", "error"), [(read_json, SourceError), (read_edited_json, SpecError)])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[]", "holds a JSON list; expected an object"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"", "is not"),
    ],
    ids=str,
)
def test_what_is_no_object(tmp_path, read, error, text, says):
    """A model's file is the source's fault, an edited one is wrong use."""
    (tmp_path / "p.json").write_bytes(text)
    with pytest.raises(error, match=rf"p\.json: {says}"):
        read(tmp_path / "p.json")


@pytest.mark.parametrize(("read", "error"), [(read_json, SourceError), (read_edited_json, SpecError)])
def test_what_is_not_there(tmp_path, read, error):
    with pytest.raises(error, match=r"nowhere\.json: cannot be read \(No such file or directory\)"):
        read(tmp_path / "nowhere.json")


def test_endless_files_are_not_read(tmp_path):
    """As Python objects JSON takes many times its bytes; a size that no such file has is refused before."""
    (tmp_path / "config.json").write_text('{"a": "' + "x" * 100 + '"}')
    assert read_json(tmp_path / "config.json")
    with (tmp_path / "config.json").open("r+b") as file:
        file.truncate(80 << 20)
    with pytest.raises(
        SourceError, match=r"config\.json: has 80 MiB; expected a JSON file of at most 16 MiB; download"
    ):
        read_json(tmp_path / "config.json")
    with pytest.raises(SpecError, match=r"config\.json: has 80 MiB; expected a JSON file of at most 64 MiB$"):
        read_edited_json(tmp_path / "config.json")


def test_deep_nesting(tmp_path):
    (tmp_path / "p.json").write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(SourceError, match=r"p\.json: is not JSON"):
        read_json(tmp_path / "p.json")
