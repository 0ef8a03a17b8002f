"""Files: external data in and out, bounded memory, the same bytes every time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import splitquant.onnx as sqo
from builders.onnx_models import X, heavy, matmul, run, sqnr
from splitquant import QuantSpec
from splitquant.errors import DestinationError, TensorError
from splitquant.onnx.forms import encode
from splitquant.onnx.wire.skeleton import varint


@pytest.mark.parametrize("form", ["float", "qdq", "matmulnbits"])
def test_external_data_comes_out_as_external_data(form, tmp_path):
    """A model with external data gives one with aligned external data, which ONNX Runtime and the checker read."""
    onnx.save(matmul(), tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    out = tmp_path / "out.onnx"
    sqo.split(tmp_path / "m.onnx", out) if form == "float" else sqo.quantize(tmp_path / "m.onnx", out, format=form)
    onnx.checker.check_model(str(out))
    graph = onnx.load(out, load_external_data=False).graph
    entries = [
        {entry.key: entry.value for entry in proto.external_data} for proto in graph.initializer if proto.external_data
    ]
    assert entries
    assert all(entry["location"] == "out.onnx.data" and int(entry["offset"]) % 4096 == 0 for entry in entries)
    assert sqnr(run(tmp_path / "m.onnx", {"x": X})[0], run(out, {"x": X})[0]) > 15
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "out.onnx", "out.onnx.data", "weights.bin"]


def test_inline_and_external_give_the_same_weights(tmp_path):
    """Where the weights lie does not change what becomes of them; nor do threads and the size of windows."""
    onnx.save(matmul(), tmp_path / "inline.onnx")
    onnx.save(matmul(), tmp_path / "external.onnx", save_as_external_data=True, size_threshold=0)
    found = []
    for name, threads in (("inline", 1), ("external", 2)):
        sqo.quantize(tmp_path / f"{name}.onnx", tmp_path / f"{name}.out.onnx", threads=threads)
        model = onnx.load(tmp_path / f"{name}.out.onnx")
        found.append([(proto.name, onnx.numpy_helper.to_array(proto).tobytes()) for proto in model.graph.initializer])
    assert found[0] == found[1]


@pytest.mark.parametrize("form", ["float", "qdq", "matmulnbits"])
@pytest.mark.parametrize("shape", [(64, 96), (33, 40)])
def test_windows_do_not_change_bytes(form, shape, tmp_path, monkeypatch):
    """A weight that is read in many spans of channels gives the bytes of one that is read at once."""
    made = matmul(heavy(shape), batch=("b", shape[0]))
    spec = QuantSpec(bits=4, layout="parallel")

    def convert():
        done = sqo.split(made, spec=spec) if form == "float" else sqo.quantize(made, spec=spec, format=form)
        return done.model.SerializeToString()

    whole = convert()
    monkeypatch.setattr(encode, "_CHUNK_WEIGHTS", 1)
    monkeypatch.setattr(encode, "_WORK_BYTES", 1 << 40)  # nothing fits: eight channels at a time
    assert convert() == whole


def test_same_input_same_bytes(tmp_path):
    """Two runs write the same files."""
    onnx.save(matmul(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sqo.quantize(tmp_path / "m.onnx", tmp_path / name / "out.onnx")
    for name in ("out.onnx", "out.onnx.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def _with_everything():
    """Large weights as initializers, Constants, packed float_data, in a subgraph, in a function, and in kept tensors."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    made = matmul()
    floats = helper.make_tensor("F", 1, [48, 48], heavy((48, 48), 1).ravel().tolist())
    constant = helper.make_node("Constant", [], ["C"], value=numpy_helper.from_array(heavy((48, 48), 2)))
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["f", "S"], ["s"], name="inner")],
        "yes",
        [],
        [helper.make_tensor_value_info("s", 1, None)],
        [numpy_helper.from_array(heavy((48, 48), 3), "S")],
    )
    other = helper.make_graph(
        [helper.make_node("Add", ["f", "A"], ["a"])],
        "no",
        [],
        [helper.make_tensor_value_info("a", 1, None)],
        [numpy_helper.from_array(heavy((48, 48), 4)[:1] * np.ones((48, 1), np.float32), "A")],
    )
    node = made.graph.node[0]
    node.output[0] = "h"
    made.graph.node.extend(
        [
            constant,
            helper.make_node("MatMul", ["h", "C"], ["c"], name="constant"),
            helper.make_node("MatMul", ["c", "F"], ["f"], name="floats"),
            helper.make_node("If", ["yes"], ["z"], then_branch=inner, else_branch=other, name="if"),
            helper.make_node("Einsum", ["z", "K"], ["y"], equation="ij,jk->ik", name="kept"),
        ]
    )
    made.graph.initializer.extend([floats, numpy_helper.from_array(heavy((48, 48), 5), "K")])
    made.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", 1, [48, 64]))
    made.graph.input.append(helper.make_tensor_value_info("yes", onnx.TensorProto.BOOL, []))
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [48, 48]))
    return made


@pytest.mark.parametrize("form", ["float", "qdq", "matmulnbits"])
@pytest.mark.parametrize("largest", [None, 4000])
def test_a_file_is_what_the_model_in_memory_is(form, largest, tmp_path, monkeypatch):
    """A model that is streamed, into one file or with external data, is the one that is made in memory."""
    made = _with_everything()
    onnx.save(made, tmp_path / "m.onnx")
    convert = sqo.split if form == "float" else lambda *given: sqo.quantize(*given, format=form)
    if largest is not None:
        monkeypatch.setattr("splitquant.onnx.assembly.MOST_INLINE_BYTES", largest)
    done = convert(tmp_path / "m.onnx", tmp_path / "out.onnx")
    onnx.checker.check_model(str(tmp_path / "out.onnx"))
    found, wanted = onnx.load(tmp_path / "out.onnx"), convert(made).model
    assert (tmp_path / "out.onnx.data").exists() == (largest is not None)
    assert any("external data" in note for note in done.report.notes) == (largest is not None)
    assert [node.weight for node in done.report.changed] == ["W", "C", "F", "S"]
    if largest is None:
        assert done.model == found == wanted
    for yes in (True, False):
        feeds = {"x": heavy((48, 64), 9), "yes": np.array(yes)}
        np.testing.assert_array_equal(run(found, feeds)[0], run(wanted, feeds)[0])
        assert sqnr(run(made, feeds)[0], run(tmp_path / "out.onnx", feeds)[0]) > 12


_BIG = """
import sys
import splitquant.onnx as sqo
convert = sqo.split if sys.argv[3] == "float" else sqo.quantize
options = {"target_bits": 4.5, "fixed": {"clusters": 1, "polish": False}} if sys.argv[3] == "by size" else {}
convert(sys.argv[1], sys.argv[2], max_memory=sys.argv[4], threads=1, **options)
# Not ru_maxrss: it starts from the size of the process that forked this one.
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("form", ["float", "qdq", "by size"])
def test_peak_memory_is_bounded(form, tmp_path):
    """A weight of 512 MB in external data is converted within 320 MiB, and measured for a size before."""
    rows, cols = 4096, 32768
    proto = matmul(np.zeros((1, 1), np.float32), batch=("b", rows))
    tensor = proto.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend([rows, cols])
    tensor.ClearField("raw_data")
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, ["b", cols]))
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(rows * cols * 4)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    assert _peak(tmp_path, form, 320) < 320


def _peak(folder, form, most):
    """The peak memory of a conversion in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _BIG, str(folder / "m.onnx"), str(folder / "out.onnx"), form, f"{most}MiB"],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("place", ["initializer", "constant", "float_data"])
def test_peak_memory_is_bounded_for_weights_in_the_model(place, tmp_path):
    """256 MB in the model file, and three times as much in the result, within 224 MiB."""
    rows, cols, helper = 8192, 8192, onnx.helper
    proto = matmul(np.zeros((rows, 1), np.float32), batch=("b", rows))
    tensor = proto.graph.initializer[0]
    tensor.dims[1] = cols
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["b", cols]))
    data = np.zeros(rows * cols, np.float32).tobytes()
    if place == "float_data":  # by hand: the packed form is quicker to write than to build
        tensor.ClearField("raw_data")
        field = tensor.SerializeToString() + b"\x22" + varint(len(data)) + data
        del proto.graph.initializer[:]
        graph = proto.graph.SerializeToString() + b"\x2a" + varint(len(field)) + field
        proto.ClearField("graph")
        text = proto.SerializeToString() + b"\x3a" + varint(len(graph)) + graph
    else:
        tensor.raw_data = data
        if place == "constant":
            proto.graph.node.insert(0, helper.make_node("Constant", [], ["W"], value=tensor))
            del proto.graph.initializer[:]
        text = proto.SerializeToString()
    (tmp_path / "m.onnx").write_bytes(text)
    assert _peak(tmp_path, "float", 224) < 224
    assert (tmp_path / "out.onnx").stat().st_size > 3 * 4 * rows * cols
    assert not (tmp_path / "out.onnx.data").exists()


@pytest.mark.parametrize("name", ["m.onnx", "link.onnx"])
def test_a_small_source_is_never_overwritten(tmp_path, name):
    """The model file is a file of the source, even where all its weights are read at once."""
    onnx.save(matmul(heavy((8, 8)), batch=("b", 8)), tmp_path / "m.onnx")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()
    with pytest.raises(DestinationError, match="is a file of the source"):
        sqo.split(tmp_path / name, tmp_path / "m.onnx", force=True)
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_lines_that_end_within_bytes_get_all_the_memory(tmp_path):
    """INT4 rows of an odd number are packed as a whole: larger than a thread's share, such a weight is done alone."""
    path, out = tmp_path / "odd.onnx", tmp_path / "out.onnx"
    weight = heavy((1024, 4097), 3)
    onnx.save(matmul(weight, batch=("b", 1024)), path)
    sqo.quantize(path, out, QuantSpec(4, 2, "residual"), max_memory="310MB", threads=4)
    few = tmp_path / "few.onnx"
    sqo.quantize(path, few, QuantSpec(4, 2, "residual"), threads=1)
    assert out.read_bytes() == few.read_bytes()
    onnx.save(matmul(heavy((4096, 8193), 3), batch=("b", 4096)), path)
    with pytest.raises(TensorError, match="raise it, take the format matmulnbits"):
        sqo.quantize(path, out, QuantSpec(4, 2, "residual"), max_memory="220MB", threads=1, force=True)


def test_text_that_is_not_utf8(tmp_path):
    """Old tools write Latin-1 into names and descriptions; it comes out as it went in."""
    path, out = tmp_path / "latin.onnx", tmp_path / "out.onnx"
    proto = matmul(heavy((64, 48), 0))
    proto.producer_name = "caf_"
    path.write_bytes(proto.SerializeToString().replace(b"caf_", b"caf\xe9"))
    sqo.quantize(path, out)
    assert b"caf\xe9" in out.read_bytes()


def test_external_data_by_way_of_another_folder(tmp_path):
    """`sub/../weights.bin` is beside the model, by its text, whatever `sub` is."""
    onnx.save(matmul(), tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    straight = sqo.quantize(tmp_path / "m.onnx", tmp_path / "a.onnx").report
    made = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for proto in made.graph.initializer:
        proto.external_data[0].value = "sub/../weights.bin"
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    assert sqo.quantize(tmp_path / "m.onnx", tmp_path / "b.onnx").report == straight
    sizes = [(tmp_path / name).stat().st_size for name in ("a.onnx.data", "b.onnx.data")]
    assert sizes[0] == sizes[1]
