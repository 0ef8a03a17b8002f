"""A Hugging Face folder as it lies on disk: configuration, shards and their tensors, all other files.

Only headers are read; the model class is never built, so any architecture will do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitquant.checkpoint.safetensors import Entry, read_header
from splitquant.errors import SourceError
from splitquant.storage.json_file import read_json
from splitquant.storage.memory import MIB

SINGLE = "model.safetensors"
# The same weights in other formats; in a quantized folder they would only be float weights again.
WEIGHT_COPIES = re.compile(
    r"((pytorch_model.*\.bin|tf_model.*\.h5|flax_model.*\.msgpack)(\.index\.json)?|rust_model\.ot|consolidated.*\.(safetensors|pth)"
    r"|.*\.(gguf|onnx|onnx_data|tflite|ckpt))$"
)
PICKLES = (".bin", ".pt", ".pth", ".th", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file of a folder."""

    name: str
    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Folder:
    """A checked folder: `config` is config.json ({} where there is none).

    tensors, shard_of: every tensor, and the file name of its shard, by the tensor's name.
    other_files: paths below the folder of everything that is neither a shard nor the index nor config.json, and
    left_out: of copies of the weights in other formats, which nothing reads.
    """

    path: Path
    config: Mapping[str, Any]
    shards: tuple[Shard, ...]
    tensors: Mapping[str, Entry]
    shard_of: Mapping[str, str]
    index_name: str | None
    index_metadata: Mapping[str, Any]
    other_files: tuple[str, ...]
    left_out: tuple[str, ...]


def open_folder(path: Path) -> Folder:  # noqa: C901 - a flat list of checks, each with its reason, reads best in one piece
    """Read the headers of a folder; SourceError names what is missing, damaged or not read, and the remedy."""
    if not path.exists():
        raise SourceError(f"{path}: no such folder")
    if not path.is_dir():
        raise SourceError(f"{path}: is a file; expected a Hugging Face folder (config.json and *.safetensors)")
    files = _files_below(path)
    top = [name for name in files if "/" not in name]
    index_names = [name for name in top if name.endswith(".safetensors.index.json")]
    if len(index_names) > 1:
        raise SourceError(
            f"{path}: holds {len(index_names)} indexes ({', '.join(index_names)}); expected one: keep the one that is meant"
        )
    index_metadata: Mapping[str, Any] = {}
    if index_names and SINGLE in top:
        raise SourceError(
            f"{path}: holds both {SINGLE} and the index {index_names[0]}, two copies of a model; remove the one that is not meant"
        )
    if index_names:
        weight_map, index_metadata = _read_index(path / index_names[0])
        shard_names = sorted(set(weight_map.values()))
        for name in shard_names:
            if name not in top:
                raise SourceError(
                    f"{path / index_names[0]}: names the shard {name!r}, which is not in the folder; download it again"
                )
    else:
        weight_map = None
        shard_names = [name for name in top if name.endswith(".safetensors")]
        if SINGLE in shard_names:
            shard_names = [SINGLE]  # others beside it are other copies
    if not shard_names:
        raise SourceError(f"{path}: {_why_no_weights(top)}")
    shards = []
    for name in shard_names:
        header = read_header(path / name)
        shards.append(Shard(name, header.entries, header.metadata))
    _check_names(path, shards, weight_map)
    if not any(shard.entries for shard in shards):
        raise SourceError(f"{path / shard_names[0]}: holds no tensors; expected the weights of a model")
    claimed = {*shard_names, *index_names, "config.json"}
    other_files = tuple(name for name in files if name not in claimed and not _is_copy(name))
    _refuse_links_outside(path, other_files)
    return Folder(
        path=path,
        config=read_json(path / "config.json") if "config.json" in top else {},
        shards=tuple(shards),
        tensors={entry.name: entry for shard in shards for entry in shard.entries},
        shard_of={entry.name: shard.name for shard in shards for entry in shard.entries},
        index_name=index_names[0] if index_names else None,
        index_metadata=index_metadata,
        other_files=other_files,
        left_out=tuple(name for name in files if name not in claimed and _is_copy(name)),
    )


def _is_copy(name: str) -> bool:
    # A float copy in the output would be what tools find first.
    return WEIGHT_COPIES.fullmatch(name.rsplit("/", 1)[-1]) is not None or (
        "/" not in name and name.endswith(".safetensors") and not name.startswith("adapter")
    )


def _files_below(path: Path) -> list[str]:
    """All files of a folder by their paths below it, through links; SourceError for a link to nothing."""
    files, seen = [], set()
    for place, folders, names in os.walk(path, followlinks=True, onerror=_unreadable):
        seen.add(os.path.realpath(place))
        folders[:] = [name for name in folders if os.path.realpath(Path(place, name)) not in seen]  # no endless circles
        for name in names:
            file = Path(place, name)
            if _is_hidden(file.relative_to(path)):
                continue
            if not file.exists():
                raise SourceError(
                    f"{file}: is a link to a file that is not there; download it again, or remove the link"
                )
            if file.is_file():
                files.append(str(file.relative_to(path)))
    return sorted(files)


def _unreadable(error: OSError) -> None:
    raise SourceError(
        f"{error.filename}: cannot be read ({error.strerror}); give yourself access, or move it away"
    ) from error


def _refuse_links_outside(path: Path, names: Iterable[str]) -> None:
    """SourceError for a link whose bytes lie neither in the folder nor in the blobs of the hub's cache that it is in.

    What is beside the weights is carried into the output as it is, and others may read that.
    """
    root = path.resolve()
    homes = [root]
    if root.parent.name == "snapshots":
        homes.append(root.parent.parent / "blobs")
    for name in names:
        real = (path / name).resolve()
        if not any(real.is_relative_to(home) for home in homes):
            raise SourceError(
                f"{path / name}: is a link to {real}, outside of the folder, and would be copied into the output; put the file "
                "itself there, or remove the link"
            )


def _is_hidden(relative: Path) -> bool:
    """Caches of download tools and version control lie in hidden folders; hidden files such as .gitattributes are carried."""
    return any(part.startswith(".") for part in relative.parts[:-1])


def _read_index(path: Path) -> tuple[dict[str, str], Mapping[str, Any]]:
    data = read_json(path, 64 * MIB)
    weight_map = data.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        raise SourceError(f"{path}: has no 'weight_map' of tensor names to file names; download it again")
    for name, file in weight_map.items():
        if "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise SourceError(
                f"{path}: puts tensor {name!r} in {file!r}; expected the name of a .safetensors file in the folder"
            )
    metadata = data.get("metadata", {})
    return weight_map, metadata if isinstance(metadata, dict) else {}


def _check_names(path: Path, shards: list[Shard], weight_map: Mapping[str, str] | None) -> None:
    home: dict[str, str] = {}
    for shard in shards:
        for entry in shard.entries:
            if entry.name in home:
                raise SourceError(
                    f"{path / shard.name}: tensor {entry.name!r} is also in {home[entry.name]}; "
                    "a folder must hold each tensor once (is a second copy of the model beside it?)"
                )
            home[entry.name] = shard.name
    for name, file in (weight_map or {}).items():
        if home.get(name) != file:
            raise SourceError(
                f"{path}: the index puts tensor {name!r} in {file}, "
                + (f"and it is in {home[name]}" if name in home else "where it is not")
                + "; download the folder again"
            )


def _why_no_weights(top: list[str]) -> str:
    pickles = [name for name in top if name.endswith(PICKLES)]
    if pickles:
        return (
            f"holds its weights as pickles ({', '.join(pickles[:3])}), which can run code when loaded and are never opened; "
            "convert them first, with transformers: model.save_pretrained(folder, safe_serialization=True)"
        )
    if any(name.endswith(".gguf") for name in top):
        return "holds GGUF files, which are quantized already; use the float safetensors folder they were made from"
    return "holds no .safetensors file; expected a Hugging Face folder"
