"""A folder is opened by its headers; whatever is missing, damaged or not read is named with its remedy."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass, field

import numpy as np
import pytest

from builders.folders import CONFIG, normal, safetensors_bytes, split_up, tiny_tensors, write_folder, write_sharded
from splitquant.checkpoint.folder import open_folder
from splitquant.errors import SourceError

A = {"a.weight": normal(1, 4, 4)}
B = {"b.weight": normal(2, 4, 4)}
SHARD_1, SHARD_2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def index(**weight_map):
    """The text of an index; `__` in a name stands for a dot."""
    return json.dumps({"weight_map": {name.replace("__", "."): file for name, file in weight_map.items()}})


def test_single_file(tmp_path):
    """A folder with one file has one shard and no index."""
    folder = open_folder(write_folder(tmp_path / "m", tiny_tensors(), config=CONFIG))
    assert [shard.name for shard in folder.shards] == ["model.safetensors"]
    assert folder.index_name is None
    assert dict(folder.config) == CONFIG
    assert set(folder.tensors) == set(tiny_tensors())
    assert folder.other_files == ()


def test_single_file_of_any_name(tmp_path):
    """The one .safetensors file may have any name."""
    (tmp_path / "diffusion_model.safetensors").write_bytes(safetensors_bytes(A))
    assert [shard.name for shard in open_folder(tmp_path).shards] == ["diffusion_model.safetensors"]


def test_sharded_with_index(tmp_path):
    """Shards come in order of their names, with the metadata of the index."""
    source = write_sharded(tmp_path / "m", split_up(tiny_tensors(), 3), config=CONFIG, index_metadata={"note": "x"})
    folder = open_folder(source)
    assert [shard.name for shard in folder.shards] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert folder.index_name == INDEX
    assert folder.index_metadata["note"] == "x"
    assert all(folder.shard_of[entry.name] == shard.name for shard in folder.shards for entry in shard.entries)


def test_sharded_without_index(tmp_path):
    """Several files without an index are all shards."""
    (tmp_path / SHARD_1).write_bytes(safetensors_bytes(A))
    (tmp_path / SHARD_2).write_bytes(safetensors_bytes(B))
    folder = open_folder(tmp_path)
    assert set(folder.tensors) == {"a.weight", "b.weight"}
    assert folder.index_name is None


def test_other_files_are_carried_over(tmp_path):
    """Other files are listed by their paths: subfolders and hidden files, but nothing in hidden folders."""
    files = {
        "tokenizer.json": "{}",
        ".gitattributes": "x",
        "1_Pooling/config.json": "{}",
        "a/b/c.txt": "c",
        ".cache/huggingface/x.lock": "x",
        ".git/HEAD": "x",
        "a/.hidden/y": "y",
        "adapter.safetensors": safetensors_bytes(A),
        "onnx/model.safetensors": b"not opened",
    }
    folder = open_folder(write_folder(tmp_path / "m", A, config=CONFIG, files=files))
    assert set(folder.other_files) == {
        "tokenizer.json",
        ".gitattributes",
        "1_Pooling/config.json",
        "a/b/c.txt",
        "adapter.safetensors",
        "onnx/model.safetensors",
    }


def test_no_config_is_an_empty_one(tmp_path):
    """A folder without config.json opens with an empty configuration."""
    assert dict(open_folder(write_folder(tmp_path / "m", A)).config) == {}


@dataclass(frozen=True)
class Refused:
    """A folder, as its files, that must be refused with these words."""

    id: str
    files: dict[str, bytes | str] = field(hash=False)
    says: tuple[str, ...]


ONE = {SHARD_1: safetensors_bytes(A), SHARD_2: safetensors_bytes(B)}
REFUSED = [
    Refused("nothing", {}, ("holds no .safetensors file",)),
    Refused("pickles alone", {"pytorch_model.bin": b"x", "config.json": "{}"}, ("pickle", "safe_serialization=True")),
    Refused("a .pth alone", {"model.pth": b"x"}, ("pickle", "model.pth")),
    Refused("GGUF alone", {"model.gguf": b"x"}, ("GGUF", "float safetensors folder")),
    Refused(
        "shard missing", {INDEX: index(a__weight=SHARD_1, b__weight=SHARD_2), SHARD_1: ONE[SHARD_1]}, (SHARD_2, INDEX)
    ),
    Refused(
        "tensor elsewhere",
        {INDEX: index(a__weight=SHARD_2, b__weight=SHARD_1), **ONE},
        ("'a.weight'", SHARD_1, SHARD_2),
    ),
    Refused("tensor nowhere", {INDEX: index(a__weight=SHARD_1, x__weight=SHARD_1), **ONE}, ("'x.weight'", SHARD_1)),
    Refused("path upwards", {INDEX: index(a__weight="../x.safetensors"), **ONE}, ("'a.weight'", "'../x.safetensors'")),
    Refused("absolute path", {INDEX: index(a__weight="/x.safetensors"), **ONE}, ("'a.weight'", "'/x.safetensors'")),
    Refused("path with backslash", {INDEX: index(a__weight="..\\x.safetensors"), **ONE}, ("'a.weight'",)),
    Refused(
        "path into a subfolder",
        {INDEX: index(a__weight="s/x.safetensors"), "s/x.safetensors": b"", **ONE},
        ("'a.weight'",),
    ),
    Refused("shard is a pickle", {INDEX: index(a__weight="x.bin"), "x.bin": b"", **ONE}, ("'a.weight'", "'x.bin'")),
    Refused("dots", {INDEX: index(a__weight=".."), **ONE}, ("'a.weight'",)),
    Refused("empty name", {INDEX: index(a__weight=""), **ONE}, ("'a.weight'",)),
    Refused("index maps to numbers", {INDEX: '{"weight_map": {"a": 1}}', **ONE}, ("weight_map",)),
    Refused("index without a map", {INDEX: "{}", **ONE}, ("weight_map",)),
    Refused("index is a list", {INDEX: "[]", **ONE}, (INDEX, "list")),
    Refused("index not JSON", {INDEX: "{", **ONE}, (INDEX, "not JSON")),
    Refused("index not UTF-8", {INDEX: b"\xff", **ONE}, (INDEX, "not JSON")),
    Refused("index with an endless integer", {INDEX: '{"a": ' + "9" * 5000 + "}", **ONE}, (INDEX,)),
    Refused("two indexes", {INDEX: "{}", "x.safetensors.index.json": "{}", **ONE}, ("2 indexes",)),
    Refused(
        "tensor in two shards",
        {"a.safetensors": ONE[SHARD_1], "b.safetensors": ONE[SHARD_1]},
        ("'a.weight'", "a.safetensors", "b.safetensors"),
    ),
    Refused("a damaged shard", {"model.safetensors": b"x"}, ("model.safetensors", "damaged")),
    Refused("config not JSON", {"model.safetensors": ONE[SHARD_1], "config.json": "{"}, ("config.json", "not JSON")),
    Refused("config a list", {"model.safetensors": ONE[SHARD_1], "config.json": "[]"}, ("config.json", "list")),
    Refused(
        "a Git LFS pointer",
        {"model.safetensors": "version https://git-lfs.github.com/spec/v1\noid sha256:0"},
        ("model.safetensors",),
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_folder_is_refused(tmp_path, case):
    """A folder that cannot be read is refused, by name and with the remedy."""
    for name, content in case.files.items():
        path = tmp_path / "m" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "m").mkdir(exist_ok=True)
    (tmp_path / "x.safetensors").write_bytes(ONE[SHARD_1])  # what tricks would reach for
    with pytest.raises(SourceError) as error:
        open_folder(tmp_path / "m")
    for text in (str(tmp_path / "m"), *case.says):
        assert text in str(error.value)


def test_missing_folder(tmp_path):
    """A path that does not exist is named."""
    with pytest.raises(SourceError, match=r"nowhere: no such folder"):
        open_folder(tmp_path / "nowhere")


def test_file_instead_of_folder(tmp_path):
    """A file is refused with what was expected."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(ONE[SHARD_1])
    with pytest.raises(SourceError, match="is a file; expected a Hugging Face folder"):
        open_folder(path)


def test_an_index_in_a_subfolder_does_not_count(tmp_path):
    """Indexes and shards count at the top of the folder only."""
    folder = open_folder(write_folder(tmp_path / "m", A, files={f"unet/{INDEX}": "{}"}))
    assert folder.index_name is None
    assert f"unet/{INDEX}" in folder.other_files


def test_shards_may_be_links(tmp_path):
    """The links of a download cache are followed to their files."""
    write_folder(tmp_path / "blobs", A)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").symlink_to(tmp_path / "blobs" / "model.safetensors")
    assert set(open_folder(tmp_path / "m").tensors) == set(A)


def test_order_of_tensors_is_that_of_the_file(tmp_path):
    """Tensors come in the order of their bytes, not of their names."""
    folder = open_folder(write_folder(tmp_path / "m", {"z": np.zeros(2, np.float32), "a": np.zeros(2, np.float32)}))
    assert list(folder.tensors) == ["z", "a"]


def test_index_and_single_file_are_two_models(tmp_path):
    """A folder that holds a model twice is refused: tools do not agree on which one counts."""
    folder = write_sharded(tmp_path / "m", split_up(tiny_tensors(), 2), config=CONFIG)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(A))
    with pytest.raises(SourceError, match=r"both model\.safetensors and the index"):
        open_folder(folder)


def test_links_are_followed(tmp_path):
    """Links within a folder are followed, circles are not walked twice, a link to nothing is refused."""
    folder = write_folder(tmp_path / "m", A, config=CONFIG)
    (folder / "blob").write_text("{}")
    (folder / "pooling").mkdir()
    (folder / "pooling/config.json").write_text("{}")
    (folder / "vocab.txt").symlink_to("blob")
    (folder / "1_Pooling").symlink_to("pooling")
    (folder / "round").symlink_to(folder)
    assert {"vocab.txt", "1_Pooling/config.json"} & set(open_folder(folder).other_files)
    (folder / "blob").unlink()
    with pytest.raises(SourceError, match=r"vocab\.txt: is a link to a file that is not there"):
        open_folder(folder)


def test_links_into_the_blobs_of_the_hubs_cache(tmp_path):
    """A snapshot of the hub's cache is a folder of links to the blobs beside it, and is opened through a link as well."""
    home = tmp_path / "models--org--name"
    snapshot = write_folder(home / "snapshots/abc", A, config=CONFIG)
    (home / "blobs").mkdir()
    for name in ("model.safetensors", "config.json"):
        (snapshot / name).rename(home / "blobs" / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    (home / "blobs/abcdef").write_text("{}")
    (snapshot / "vocab.txt").symlink_to("../../blobs/abcdef")
    (tmp_path / "here").symlink_to(snapshot)
    for path in (snapshot, tmp_path / "here"):
        assert open_folder(path).other_files == ("vocab.txt",)


@pytest.mark.parametrize("link", ["vocab.txt", "sub"])
def test_links_to_places_outside_are_refused(tmp_path, link):
    """What lies elsewhere on the machine never gets into an output; weights may, which are read and not carried."""
    folder = write_folder(tmp_path / "m", A, config=CONFIG)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key.txt").write_text("secret")
    (folder / link).symlink_to(tmp_path / "secret" / ("key.txt" if "." in link else ""))
    with pytest.raises(SourceError, match=r"is a link to .*secret/key\.txt, outside of the folder.*remove the link"):
        open_folder(folder)
    (folder / link).unlink()
    (folder / "model.safetensors").rename(tmp_path / "w")
    (folder / "model.safetensors").symlink_to(tmp_path / "w")
    assert open_folder(folder).tensors


def test_a_subfolder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    """It is not left out in silence."""
    folder = write_folder(tmp_path / "m", A, config=CONFIG)
    (folder / "sub").mkdir()
    original = os.scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match=r"m/sub: cannot be read \(Permission denied\); give yourself access"):
        open_folder(folder)
