"""Tiny model folders for tests: safetensors by hand, so that any dtype and any defect can be written."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import deserialize, safe_open

DTYPE_OF = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "uint16": "BF16",  # the bits of bf16
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclass(frozen=True)
class Raw:
    """A tensor as it lies in a file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def bf16(values) -> np.ndarray:
    """The bits of the bf16 numbers nearest to some float32 numbers."""
    bits = np.atleast_1d(np.asarray(values, np.float32)).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype(np.uint16).reshape(np.shape(values))


def raw(array, dtype=None) -> Raw:
    """A tensor from an array; uint16 is bf16, and `dtype` names what NumPy has no type for (fp8 as uint8)."""
    if isinstance(array, Raw):
        return array
    array = np.asarray(array)
    return Raw(dtype or DTYPE_OF[array.dtype.name], array.shape, np.ascontiguousarray(array).tobytes())


def frame(header, data=b"") -> bytes:
    """A safetensors file of any header (bytes, or what becomes JSON) and any data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def safetensors_bytes(tensors, metadata=None) -> bytes:
    """A valid file with the tensors in the given order."""
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, array in tensors.items():
        tensor = raw(array)
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(tensor.data)],
        }
        data += tensor.data
    return frame(header, data)


def read_tensors(path) -> dict[str, Raw]:
    """All tensors of a file, read by the official library."""
    with safe_open(path, framework="np") as file:
        names = list(file.keys())
    found = {
        name: Raw(item["dtype"], tuple(item["shape"]), bytes(item["data"]))
        for name, item in deserialize(Path(path).read_bytes())
    }
    assert sorted(found) == sorted(names)
    return found


def read_folder(path) -> dict[str, Raw]:
    """All tensors of all shards of a folder, read by the official library."""
    found: dict[str, Raw] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        found.update(read_tensors(file))
    return found


def write_folder(path, tensors, *, config=None, metadata=None, files=None) -> Path:
    """A folder with one shard; `config` None writes no config.json; `files` are other files by path."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.safetensors").write_bytes(safetensors_bytes(tensors, metadata))
    _write_others(path, config, files)
    return path


def write_sharded(path, shards, *, config=None, metadata=None, files=None, index_metadata=None) -> Path:
    """A folder with an index over several shards: `shards` are the tensors of each."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    weight_map, total = {}, 0
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (path / name).write_bytes(safetensors_bytes(tensors, metadata))
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(len(raw(tensor).data) for tensor in tensors.values())
    index = {"metadata": {"total_size": total, **(index_metadata or {})}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    _write_others(path, config, files)
    return path


def _write_others(path, config, files):
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    for name, content in (files or {}).items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())


def normal(seed, *shape, dtype="bf16"):
    """Weights like those of a layer, in the dtype of `dtype` (bf16 as its bits)."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    if dtype == "bf16":
        return bf16(values)
    return values.astype({"fp16": np.float16, "fp32": np.float32, "fp64": np.float64}[dtype])


CONFIG = {"model_type": "tiny", "architectures": ["Tiny"], "zeta": 1, "alpha": [1, 2], "torch_dtype": "bfloat16"}


def tiny_tensors(seed=1, dtype="bf16", width=48, layers=2):
    """A small decoder: embeddings, linear weights, norms, a bias, stacked experts, a convolution, a router, integers."""
    names = {
        "model.embed_tokens.weight": (40, width),
        **{
            f"model.layers.{i}.{name}": shape
            for i in range(layers)
            for name, shape in {
                "self_attn.q_proj.weight": (width, width),
                "self_attn.q_proj.bias": (width,),
                "mlp.up_proj.weight": (2 * width, width),
                "mlp.down_proj.weight": (width, 2 * width),
                "input_layernorm.weight": (width,),
            }.items()
        },
        "model.layers.0.mlp.experts.gate_up_proj": (3, 20, width),
        "model.layers.0.mlp.gate.weight": (3, width),
        "vision.patch.conv.weight": (12, 3, 5, 5),
        "lm_head.weight": (40, width),
    }
    tensors = {name: normal(seed + i, *shape, dtype=dtype) for i, (name, shape) in enumerate(names.items())}
    tensors["model.position_ids"] = np.arange(7, dtype=np.int64)
    return tensors


def tiny_folder(path, *, seed=1, dtype="bf16", **more) -> Path:
    """A folder of `tiny_tensors` in one shard."""
    return write_folder(path, tiny_tensors(seed, dtype), config=CONFIG, metadata={"format": "pt"}, **more)


def split_up(tensors, parts):
    """Tensors dealt out to several shards in order."""
    names = list(tensors)
    size = -(-len(names) // parts)
    return [{name: tensors[name] for name in names[at : at + size]} for at in range(0, len(names), size)]


def tiny_sharded(path, *, seed=1, parts=3, **more) -> Path:
    """A folder of `tiny_tensors` in several shards with an index."""
    return write_sharded(path, split_up(tiny_tensors(seed), parts), config=CONFIG, metadata={"format": "pt"}, **more)


def middling_folder(path) -> Path:
    """A model of different sizes and distributions, in two shards, with a card and other files."""
    chance = np.random.default_rng(5)
    tensors = {
        "model.embed_tokens.weight": normal(1, 300, 96),
        **{f"model.layers.{i}.up_proj.weight": normal(i, 256, 96) for i in range(2)},
        "model.layers.3.up_proj.weight": chance.standard_t(2, (256, 96)).astype(np.float16),
        "model.layers.4.up_proj.weight": (chance.standard_normal((64, 192)) * 5).astype(np.float32),
        "model.norm.weight": normal(9, 96),
    }
    files = {"README.md": "---\nlicense: mit\n---\n# Ä model\n", "tokenizer.json": "{}", "deep/er/file.txt": "x"}
    return write_sharded(path, split_up(tensors, 2), config=CONFIG, files=files)


def tree(path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its path."""
    path = Path(path)
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def as_array(tensor: Raw) -> np.ndarray:
    """A stored tensor as an array (bf16 as its bits)."""
    numpy_of = {stored: name for name, stored in DTYPE_OF.items()}
    return np.frombuffer(tensor.data, numpy_of[tensor.dtype]).reshape(tensor.shape)


def flip_byte(path, at, mask=0x01):
    """Damage one byte of a file; a negative position counts from its end."""
    data = bytearray(Path(path).read_bytes())
    data[at] ^= mask
    Path(path).write_bytes(data)


def place_of(path, name) -> tuple[int, int]:
    """Where the bytes of a tensor lie in a safetensors file, by its own header."""
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    return 8 + length + begin, end - begin


def is_canonical(path) -> bool:
    """Whether a file has the order, alignment and padding of docs/format.md, section 1."""
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    bits = {"F64": 64, "I64": 64, "F32": 32, "I32": 32, "F16": 16, "BF16": 16}
    keys = [(-bits.get(item["dtype"], 8), name) for name, item in header.items()]
    at = 0
    for item in header.values():
        size = math.prod(item["shape"]) * bits.get(item["dtype"], 8) // 8
        if item["data_offsets"] != [at, at + size] or at % max(1, bits.get(item["dtype"], 8) // 8):
            return False
        at += size
    return length % 8 == 0 and keys == sorted(keys)
