"""Operators that mean something else in a later opset, and which the version converter does not put right.

Found by `benchmarks/quality/onnx_opsets.py`, which runs every operator before and after every step.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from splitquant.onnx.graph.scopes import STANDARD, subgraphs, value_of
from splitquant.onnx.wire.source import is_stripped

_RESIZE, _HARDMAX, _GROUP_NORM = 11, 13, 21  # where their meaning changed
_SCAN, _MASK, _DROPOUT = 9, 10, 12


def not_raised(graph: GraphProto, found: int, needed: int) -> str:
    """The first node that nobody can raise, and why ("": there is none)."""
    for node in _nodes(graph):
        if node.op_type == "Scan" and found < _SCAN <= needed:
            return f"the node {node.name!r} (Scan) goes over a batch, which Scan does not do since opset {_SCAN}"
        if (
            node.op_type == "Dropout"
            and found < _DROPOUT
            and needed >= _MASK
            and len(node.output) > 1
            and node.output[1]
        ):
            return f"the node {node.name!r} (Dropout) returns its mask, which is another one since opset {_DROPOUT}"
        if (
            node.op_type == "Resize"
            and found < _RESIZE <= needed
            and _mode(node) == "nearest"
            and not _way(node, graph)
        ):
            return f"the node {node.name!r} (Resize) takes the nearest pixel by scales that are no constants, or of both kinds"
    return ""


def mend_meanings(old: GraphProto, new: GraphProto, found: int, needed: int) -> None:
    """Make nodes of a raised graph mean what they meant.

    - Upsample, and Resize of opset 10, count pixels from the corner (`asymmetric`); Resize since 11 from their middle.
    - Hardmax before opset 13 goes over all axes from its own on; since then over its own alone.
    - GroupNormalization of opset 18 has a scale and a bias for each group; since 21 for each channel.

    Args:
        old: the graph as it was.
        new: what the converter made of it; changed.
        found: the opset of `old`.
        needed: that of `new`.
    """
    before = {node.output[0]: node.op_type for node in _nodes(old)}
    ways = {node.output[0]: _way(node, old) for node in _nodes(old) if node.op_type in {"Upsample", "Resize"}}
    for graph in _graphs(new):
        for at in reversed(range(len(graph.node))):
            node = graph.node[at]
            was = before.get(node.output[0], "") if node.output else ""
            if was in {"Upsample", "Resize"} and node.op_type == "Resize" and found < _RESIZE <= needed:
                _count_from_the_corner(node, ways[node.output[0]])
            first: list[NodeProto] = []
            if was == node.op_type == "GroupNormalization" and found < _GROUP_NORM <= needed:
                first = _for_each_channel(node)
            if was == node.op_type == "Hardmax" and found < _HARDMAX <= needed:
                first = _over_all_axes(node)
            for made in reversed(first):
                graph.node.insert(at, made)


def _count_from_the_corner(resize: NodeProto, way: str) -> None:
    """Give a Resize the attributes that say what it did before there were any."""
    said = {"coordinate_transformation_mode": "asymmetric"}
    if _mode(resize) == "nearest":
        said["nearest_mode"] = way
    kept = [one for one in resize.attribute if one.name not in said]
    del resize.attribute[:]
    resize.attribute.extend([*kept, *(helper.make_attribute(name, text) for name, text in said.items())])


def _mode(resize: NodeProto) -> str:
    return next((str(one.s.decode()) for one in resize.attribute if one.name == "mode"), "nearest")


def _way(resize: NodeProto, graph: GraphProto) -> str:
    """Which pixel was the nearest: the one before where there are more than there were, the one behind where fewer ("": unknown)."""
    if resize.op_type == "Upsample":
        return "floor"
    scales = _scales(resize, graph)
    if not scales or min(scales) < 1.0 < max(scales):
        return ""
    return "ceil" if min(scales) < 1.0 else "floor"


def _scales(resize: NodeProto, graph: GraphProto) -> list[float]:
    """By which a Resize of opset 10 makes its axes longer; none where no constant says so."""
    for inner in _graphs(graph):
        constants = {proto.name: proto for proto in inner.initializer}
        constants.update({n.output[0]: value for n in inner.node if n.output and (value := value_of(n)) is not None})
        proto = constants.get(resize.input[1])
        if proto is not None and not is_stripped(proto) and proto.data_location != TensorProto.EXTERNAL:
            return [float(scale) for scale in numpy_helper.to_array(proto).ravel()]
    return []


def _for_each_channel(norm: NodeProto) -> list[NodeProto]:
    """Nodes that repeat scale and bias for all channels of a group; the node reads them then."""
    base = f"{norm.output[0]}.groups"
    groups = next(attribute.i for attribute in norm.attribute if attribute.name == "num_groups")
    nodes = [
        _constant(f"{base}.number", [groups]),
        _constant(f"{base}.axis", [1]),
        _constant(f"{base}.flat", [-1]),
        helper.make_node("Shape", [norm.input[0]], [f"{base}.channels"], start=1, end=2),
        helper.make_node("Div", [f"{base}.channels", f"{base}.number"], [f"{base}.each"]),
        helper.make_node("Concat", [f"{base}.number", f"{base}.each"], [f"{base}.shape"], axis=0),
    ]
    for at, what in ((1, "scale"), (2, "bias")):
        name = f"{base}.{what}"
        nodes += [
            helper.make_node("Unsqueeze", [norm.input[at], f"{base}.axis"], [f"{name}.column"]),
            helper.make_node("Expand", [f"{name}.column", f"{base}.shape"], [f"{name}.wide"]),
            helper.make_node("Reshape", [f"{name}.wide", f"{base}.flat"], [name]),
        ]
        norm.input[at] = name
    return nodes


def _over_all_axes(hardmax: NodeProto) -> list[NodeProto]:
    """Nodes before a Hardmax, which becomes the Reshape that undoes them."""
    base = f"{hardmax.output[0]}.flat"
    axis = next((attribute.i for attribute in hardmax.attribute if attribute.name == "axis"), 1)
    nodes = [
        helper.make_node("Shape", [hardmax.input[0]], [f"{base}.shape"]),
        helper.make_node("Flatten", [hardmax.input[0]], [f"{base}.in"], axis=axis),
        helper.make_node("Hardmax", [f"{base}.in"], [f"{base}.out"], name=hardmax.name, axis=-1),
    ]
    hardmax.CopyFrom(helper.make_node("Reshape", [f"{base}.out", f"{base}.shape"], hardmax.output))
    return nodes


def _constant(name: str, values: list[int]) -> NodeProto:
    tensor = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
    return helper.make_node("Constant", [], [name], value=tensor)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _graphs(inner)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    return (node for inner in _graphs(graph) for node in inner.node if node.domain in STANDARD and node.output)
