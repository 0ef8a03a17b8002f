"""Damaged and hostile files: a clear error that names the file and the tensor, and nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import splitquant.onnx as sqo
from builders.onnx_models import (
    heavy,
    matmul,
    model,
    refused_source,
    value,
    written,
)
from splitquant.errors import DestinationError, SourceError, SplitQuantError
from splitquant.onnx.wire import expansion
from splitquant.onnx.wire import skeleton as wire


def external(tmp_path, location="m.data", offset="0", length="12288", dims=(64, 48)):
    (tmp_path / "m.data").write_bytes(heavy((64, 48)).tobytes())
    proto = matmul()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.dims[:]
    tensor.dims.extend(dims)
    for key, entry in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=entry)
    return written(tmp_path, proto)


def test_good_external_data_is_read(tmp_path):
    """The builder of this file makes a valid model: what the other tests refuse is the defect alone."""
    sqo.split(external(tmp_path), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size >= 3 * 12288


@pytest.mark.parametrize("location", ["../m.data", "/etc/passwd", "a/../../m.data", "", ".", "a\\m.data", "a\0b"])
def test_paths_that_leave_the_folder(tmp_path, location):
    """External data must be below the model's own folder."""
    (tmp_path / "sub").mkdir()
    refused_source(external(tmp_path / "sub", location), r"tensor 'W' has external data at")


def test_links_and_special_files(tmp_path):
    """Symbolic links, on the way or at its end, folders and pipes are refused."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "data").write_bytes(heavy((64, 48)).tobytes())
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "link").symlink_to(tmp_path / "real" / "data")
    (tmp_path / "m" / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "m" / "plain").mkdir()
    os.mkfifo(tmp_path / "m" / "pipe")
    for location, match in (
        ("link", "symbolic link"),
        ("folder/data", "symbolic link"),
        ("plain", "no ordinary file"),
        ("pipe", "no ordinary file"),
        ("absent", "is missing"),
    ):
        refused_source(external(tmp_path / "m", location), match)


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"offset": "4"}, r"ends at byte 12292 of .*m.data, which has 12288 bytes"),
        ({"offset": "-4"}, "offset '-4'; expected a number"),
        ({"offset": "9" * 30}, "expected a number"),
        ({"length": "12284"}, r"has 12284 bytes of external data; FLOAT of shape \[64, 48\] takes 12288"),
        ({"dims": (64, -48)}, "no negative size"),
        ({"dims": (1 << 40, 1 << 40)}, "more than a file can hold"),
    ],
    ids=str,
)
def test_spans_that_do_not_fit(tmp_path, entries, match):
    """Offsets past the end, lengths and shapes that disagree."""
    refused_source(external(tmp_path, **entries), match)


@pytest.mark.parametrize("rows", [2, 64])
def test_raw_data_that_disagrees_with_the_shape(tmp_path, rows):
    """raw_data too short or too long for its shape, in tensors of any size."""
    proto = matmul(heavy((rows, 48)), batch=("b", rows))
    tensor = proto.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-4]
    refused_source(written(tmp_path, proto), r"tensor 'W' has \d+ bytes of raw_data")


def test_typed_data_that_disagrees_with_the_shape(tmp_path):
    """float_data with too few values."""
    proto = matmul()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0, 2.0])
    refused_source(written(tmp_path, proto), r"tensor 'W' has 2 values; FLOAT of shape \[64, 48\] takes 3072")


@pytest.mark.parametrize("data_type", [0, 99])
def test_unknown_element_type(tmp_path, data_type):
    """An element type that ONNX does not have."""
    proto = matmul()
    proto.graph.initializer[0].data_type = data_type
    refused_source(written(tmp_path, proto), f"tensor 'W' has the unknown element type {data_type}")


def test_files_that_are_no_model(tmp_path):
    """Empty files, text, models cut short at every length, and a missing file."""
    whole = matmul(heavy((4, 8)), batch=("b", 4)).SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        refused_source(path, str(path))
    path.write_bytes(b"not a model at all")
    refused_source(path, str(path))
    refused_source(tmp_path / "absent.onnx", "cannot be opened")


def test_bombs(tmp_path, monkeypatch):
    """A graph of countless entries, a graph too large, a nest of graphs too deep, and a file too large are refused unread."""
    monkeypatch.setattr(wire, "MOST_FIELDS", 50)
    many = model(
        [helper.make_node("Relu", ["x"], [f"a{i}"]) for i in range(100)], [value("x", [1])], [value("a0", [1])]
    )
    refused_source(written(tmp_path, many), "more than 50 nodes")
    monkeypatch.setattr(wire, "MOST_FIELDS", 1_000_000)
    monkeypatch.setattr(wire, "MOST_GRAPH_BYTES", 500)
    refused_source(written(tmp_path, many), "has a graph of more than")
    monkeypatch.setattr(wire, "MOST_GRAPH_BYTES", 1 << 29)
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["i"])], "g", [], [value("i", None)])
    for level in range(30):
        node = helper.make_node("If", ["c"], [f"y{level}"], then_branch=inner, else_branch=inner)
        inner = onnx.GraphProto()
        inner.name = "g"
        node.attribute.pop()
        inner.node.append(node)
        inner.output.append(value(f"y{level}", None))
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x3a" + _varint(inner.ByteSize()) + inner.SerializeToString())
    refused_source(path, str(path))
    with path.open("wb") as file:
        file.truncate(1 << 31)
    refused_source(path, "save the model with external data")


def _message(number, body):
    """A protobuf field that holds a message."""
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _bomb(kind, count):
    """A valid model with `count` times two bytes, each of which takes a hundred or more once parsed."""
    made = matmul()
    graph = made.graph.SerializeToString()
    made.ClearField("graph")
    if kind == "subgraph":  # empty nodes of a graph in an attribute
        inner = _message(6, b"\x0a\x00" * count) + _message(1, b"g") + b"\xa0\x01\x05"
        graph += _message(1, _message(5, inner))
    elif kind == "metadata":  # empty entries
        graph += b"\x82\x01\x00" * count
    elif kind == "attributes":  # of one node
        graph += _message(1, b"\x2a\x00" * count)
    elif kind == "many":  # attributes of nodes none of which is large
        graph += _message(1, b"\x2a\x00" * 500) * (count // 500)
    else:  # empty texts among the inputs of a node
        graph += _message(1, b"\x0a\x00" * count)
    return made.SerializeToString() + _message(7, graph)


_PEAK = """
import sys
import splitquant.onnx as sqo
from splitquant.errors import SourceError
try:
    sqo.split(sys.argv[1], sys.argv[2])
except SourceError as error:
    print(error)
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", ["subgraph", "metadata", "attributes", "many", "texts"])
def test_nested_bombs(tmp_path, kind):
    """Millions of empty messages, wherever they are, are refused before they are made."""
    path = tmp_path / "m.onnx"
    path.write_bytes(_bomb(kind, 1000))
    ModelProto.FromString(path.read_bytes())
    path.write_bytes(_bomb(kind, 10_000_000))
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path), str(tmp_path / "out.onnx")], capture_output=True, text=True, check=True
    )
    said, peak = done.stdout.splitlines()
    assert str(path) in said
    assert "more than" in said
    assert int(peak) < 300
    assert sorted(tmp_path.iterdir()) == [path]


def test_large_weights_in_other_fields(tmp_path, monkeypatch):
    """Weights that only a protobuf reader can read are not called damaged, and the way out is said."""
    monkeypatch.setattr(wire, "MOST_GRAPH_BYTES", 6_000)
    proto = matmul()
    tensor = proto.graph.initializer[0]
    weights = numpy_helper.to_array(tensor).astype(np.float16).view(np.uint16)
    tensor.ClearField("raw_data")
    tensor.data_type = TensorProto.FLOAT16
    tensor.int32_data.extend(weights.ravel().tolist())
    refused_source(written(tmp_path, proto), r"keeps large weights in other fields: save the model with external data")


def test_data_that_disagrees_in_constants(tmp_path):
    """raw_data of another size than the shape, of a Constant node and of packed float_data."""
    proto = matmul()
    tensor = proto.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-4]
    node = helper.make_node("Constant", [], ["W"], value=tensor)
    del proto.graph.initializer[:]
    proto.graph.node.insert(0, node)
    refused_source(
        written(tmp_path, proto), r"the Constant 'W' has 12284 bytes of raw_data; its shape \[64, 48\] takes 12288"
    )
    floats = matmul()
    tensor = floats.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * 3000)
    refused_source(written(tmp_path, floats), r"tensor 'W' has 12000 bytes .* takes 12288")


def test_estimates_of_memory_are_upper_bounds():
    """What the estimate says of a text is never less than what parsing it takes, nor far more for an ordinary graph."""
    nodes = [helper.make_node("Relu", [f"a{i}"], [f"a{i + 1}"], name=f"relu{i}") for i in range(100_000)]
    text = model(nodes, [value("a0", [1])], [value("a100000", [1])]).SerializeToString()
    assert len(text) > expansion.LEAST_LOOKED_AT
    assert len(text) < expansion.parsed_bytes(text, 1 << 30) < 20 * len(text)
    with pytest.raises(expansion.TooLargeError):
        expansion.parsed_bytes(text, 1 << 20)
    for damaged in (text[:-1], text + b"\x0b", text + b"\x80"):
        with pytest.raises(ValueError, match=r"runs past|unknown"):
            expansion.parsed_bytes(damaged, 1 << 30)


def _varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def test_flipped_bytes_are_refused_or_converted(tmp_path):
    """No damage of single bytes leads to anything but a model or an expected error; no half-written file stays."""
    whole = bytearray(matmul(heavy((8, 8)), batch=("b", 8)).SerializeToString())
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        path = tmp_path / "m.onnx"
        path.write_bytes(damaged)
        with suppress(SplitQuantError):
            sqo.quantize(path, tmp_path / "out.onnx", force=True)
        assert not list(tmp_path.glob(".*partial"))


def test_destination(tmp_path):
    """The source is never overwritten; an existing file only with force; a failing run leaves what was there."""
    path = written(tmp_path, matmul())
    with pytest.raises(DestinationError, match="is a file of the source"):
        sqo.split(path, path, force=True)
    (tmp_path / "out.onnx").write_bytes(b"mine")
    with pytest.raises(DestinationError, match="exists; choose another place"):
        sqo.split(path, tmp_path / "out.onnx")
    bad = heavy((64, 48))
    bad[0, 0] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        sqo.split(written(tmp_path, matmul(bad)), tmp_path / "out.onnx", force=True)
    assert (tmp_path / "out.onnx").read_bytes() == b"mine"
    sqo.split(written(tmp_path, matmul()), tmp_path / "out.onnx", force=True)
    assert numpy_helper.to_array(onnx.load(tmp_path / "out.onnx").graph.initializer[0]).shape == (64, 48)
    with pytest.raises(DestinationError, match="make it first"):
        sqo.split(path, tmp_path / "none" / "out.onnx")


def test_model_in_memory_with_external_data(tmp_path):
    """A model in memory cannot have external data: there is no folder to look in."""
    proto = onnx.load(external(tmp_path), load_external_data=False)
    with pytest.raises(SourceError, match="give the path of its file"):
        sqo.split(proto)


@pytest.mark.parametrize("place", ["attribute", "sparse"])
def test_external_data_anywhere_else(tmp_path, place):
    """A tensor that would not be copied must not point to a file."""
    proto = matmul()
    if place == "attribute":
        node = helper.make_node("ConstantOfShape", ["s"], ["c"], value=helper.make_tensor("v", 1, [1], [1.0]))
        proto.graph.node.append(node)
        proto.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "s"))
        tensor = proto.graph.node[-1].attribute[0].t
    else:
        values, indices = (
            numpy_helper.from_array(np.ones(2, np.float32), "v"),
            numpy_helper.from_array(np.arange(2), "i"),
        )
        proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [48]))
        tensor = proto.graph.sparse_initializer[0].values
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    refused_source(written(tmp_path, proto), "tensor 'v' has external data, and is neither")


def test_links_where_the_output_grows(tmp_path):
    """A link at a name that could be foreseen is not written through."""
    (tmp_path / "victim").write_text("precious")
    for name in (".out.onnx.partial", ".out.onnx.data.partial"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    sqo.split(matmul(), tmp_path / "out.onnx")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "out.onnx").is_symlink()
