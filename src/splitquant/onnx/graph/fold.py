"""Weights that a graph makes out of constants in every run: made once, so that they can be converted.

Exporters leave such chains where they do not fold: the gates of a recurrent layer put into ONNX's order by Slice and Concat, a
direction added by Unsqueeze, a weight that is scaled by Mul.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from splitquant.onnx.dtypes import KINDS
from splitquant.onnx.graph.filled import bytes_of
from splitquant.onnx.graph.operands import WEIGHT_SLOTS
from splitquant.onnx.graph.opset import opset_of
from splitquant.onnx.graph.prune import prune
from splitquant.onnx.graph.scopes import STANDARD, THROUGH, Scope, open_scopes
from splitquant.onnx.wire.source import LEAST_DETACHED, Source, strip

_FOLDED = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Slice", "Concat", "Mul", "Div", "Flatten", *THROUGH})
_MOST_NODES = 64  # of one chain
_MOST_BYTES = 1 << 28  # of what goes into one weight, which is in memory for it
_LEAST_WEIGHTS = 256  # below, nothing is gained


def fold_weights(source: Source) -> str:
    """Make every weight of a layer that is computed from constants alone an initializer.

    Transpose, Cast and Identity alone are left: weights are seen through them. Changes `source.proto`.

    Returns:
        A note that names the operators ("": there was nothing to fold).
    """
    scopes = open_scopes(source)
    made: dict[tuple[object, ...], str] = {}  # by their bytes: branches of an If often make the same ones
    operators, read, count = set[str](), set[str](), 0
    for scope in scopes:
        for node in list(scope.graph.node):
            for slot in WEIGHT_SLOTS.get(node.op_type, ()) if node.domain in STANDARD else ():
                name = node.input[slot] if slot < len(node.input) else ""
                if not name or name in made.values() or scope.constant(name) is not None:
                    continue
                chain = _chain(name, scope)
                weight = None if chain is None else _made(chain, name, opset_of(source.proto))
                if chain is None or weight is None:
                    continue
                key = (weight.shape, weight.dtype.str, sha256(weight.tobytes()).digest())
                if key not in made:
                    made[key] = _added(weight, name, scopes, source)
                node.input[slot] = made[key]
                count += 1
                operators |= {one.op_type for one, _ in chain} - set(THROUGH)
                read |= {one for other, _ in chain for one in (*other.input, *other.output)}
    if not made:
        return ""
    prune(open_scopes(source), read, {"Constant", *_FOLDED})
    return f"{count} weights were made once that {', '.join(sorted(operators))} made out of constants in every run"


Chain = list[tuple[NodeProto, Scope]]


def _chain(name: str, scope: Scope) -> Chain | None:
    """The nodes that make a value, the last one first; None where not all comes from constants by operators that are folded."""
    chain: Chain = []
    waiting, seen = [(name, scope)], set[str]()
    while waiting:
        name, at = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        found = _producer(name, at)
        if found is None:
            return None
        node, inner = found
        if node is None:
            continue
        if node.domain not in STANDARD or node.op_type not in _FOLDED or len(chain) >= _MOST_NODES:
            return None
        chain.append((node, inner))
        waiting += [(one, inner) for one in node.input if one]
    return chain


def _producer(name: str, scope: Scope | None) -> tuple[NodeProto | None, Scope] | None:
    """What makes a name: a node and its graph, no node for a constant; None for an input, or what nobody knows."""
    while scope is not None:
        if name in scope.constants:
            return None if any(value.name == name for value in scope.graph.input) else (None, scope)
        if name in scope.producers:
            return scope.producers[name], scope
        if name in scope.inputs:
            return None
        scope = scope.parent
    return None


def _made(chain: Chain, name: str, opset: int) -> NDArray[Any] | None:
    """The weight; None where it is none: integers, a vector, or too large."""
    tensors: dict[str, TensorProto] = {}
    for node, scope in chain:
        for one in filter(None, node.input):
            found = _producer(one, scope)
            assert found is not None
            if found[0] is None and one not in tensors:
                stored = found[1].constants[one]
                if stored.data_type not in KINDS and stored.nbytes > LEAST_DETACHED:
                    return None
                tensors[one] = TensorProto(
                    name=one, data_type=stored.data_type, dims=stored.shape, raw_data=bytes_of(stored)
                )
    total = sum(len(proto.raw_data) for proto in tensors.values())
    if total > _MOST_BYTES or any(proto.data_type == TensorProto.BFLOAT16 for proto in tensors.values()):
        return None
    graph = helper.make_graph(
        [node for node, _ in reversed(_sorted(chain))],
        "weight",
        [],
        [helper.make_empty_tensor_value_info(name)],
        list(tensors.values()),
    )
    made: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        run: Any = ReferenceEvaluator(made).run(None, {})
        weight = run[0]
    except Exception:  # noqa: BLE001 - whatever the evaluator throws at what it does not know: then it stays as it is
        return None
    is_weight = isinstance(weight, np.ndarray) and weight.dtype.kind == "f" and weight.ndim > 1
    return np.asarray(weight) if is_weight and weight.size >= _LEAST_WEIGHTS and weight.nbytes <= total else None


def _sorted(chain: Chain) -> Chain:
    """The same nodes, each before all that it reads."""
    order = {id(node): at for _, scope in chain for at, node in enumerate(scope.graph.node)}
    depth = {id(scope): _depth(scope) for _, scope in chain}
    return sorted(chain, key=lambda one: (depth[id(one[1])], order.get(id(one[0]), 0)), reverse=True)


def _depth(scope: Scope) -> int:
    return 0 if scope.parent is None else 1 + _depth(scope.parent)


def _added(weight: NDArray[Any], name: str, scopes: list[Scope], source: Source) -> str:
    """Put a weight into the main graph, which all others see; its name there."""
    taken = {one for scope in scopes for one in (*scope.constants, *scope.producers, *scope.inputs)}
    taken |= source.tensors.keys()
    free = f"{name}.made"
    while free in taken:
        free += "_"
    held = source.proto.graph.initializer.add()
    held.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weight), free))
    source.tensors[free] = source.stored(held, f"{source.label}: tensor {free!r}")
    if len(held.raw_data) >= LEAST_DETACHED:
        strip(held)
    return free
