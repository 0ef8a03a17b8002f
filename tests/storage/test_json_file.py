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
