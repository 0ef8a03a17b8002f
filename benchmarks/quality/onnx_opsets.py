"""Claim: raising the opset of a model never changes its results: every operator, every version, before and after.

    python -m benchmarks.quality.onnx_opsets [--op NAME]... [--all]

Models of one operator are made from the node cases that come with onnx, each brought back to every older version of its
operator (inputs that were attributes then become attributes again, what was unknown is left out). Each runs in ONNX Runtime at
the last opset of that version, and once more after one step up, by the official converter alone and as splitquant does it, which
may refuse. Steps beyond the highest opset that is asked for (INT2's) are left out. Needs onnx and onnxruntime. Prints a line for every
step where the converter alone is not right, --all for all.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, defs, helper, numpy_helper, version_converter
from onnx.backend.test.case.node import collect_testcases

from splitquant.errors import SourceError
from splitquant.onnx.graph.filled import filled
from splitquant.onnx.graph.opset import dequantize_opset, raise_opset
from splitquant.onnx.raised import check_raised
from splitquant.onnx.wire.source import Source

Feeds = dict[str, Any]
_OLDEST = 7  # ONNX Runtime promises nothing below
_HIGHEST = dequantize_opset(TensorProto.INT2, per_axis=True, half=True, blocked=True)
_NEAR_DB = 60.0  # float16 rounds; what means something else has 25 and less
_RENAMED = {"Upsample": "Resize", "Scatter": "ScatterElements"}  # deprecated: cases of what took their place


@dataclass(frozen=True)
class Case:
    """One node with its inputs, at the newest version of its operator."""

    name: str
    node: NodeProto
    version: int
    feeds: Feeds


@dataclass
class Step:
    """What became of all cases of one operator at one step: of the converter alone, and of `raise_opset`."""

    converter: Counter[str] = field(default_factory=Counter)
    ours: Counter[str] = field(default_factory=Counter)
    number_alone: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def cases() -> Iterator[Case]:
    """The node cases of the default domain that are one node of tensors, and cases of deprecated operators."""
    for found in collect_testcases(None):
        graph = found.model.graph
        if len(graph.node) != 1 or graph.node[0].domain or found.name.endswith("_expanded") or not found.data_sets:
            continue
        version = next(entry.version for entry in found.model.opset_import if not entry.domain)
        inputs, _ = found.data_sets[0]
        names = [name for name in graph.node[0].input if name]
        feeds = {
            name: numpy_helper.to_array(x) if isinstance(x, TensorProto) else x
            for name, x in zip(names, inputs, strict=False)
        }
        if not all(isinstance(x, np.ndarray) for x in feeds.values()):
            continue
        yield Case(found.name, graph.node[0], version, feeds)
        for old, new in _RENAMED.items():
            if graph.node[0].op_type == new:
                node = NodeProto()
                node.CopyFrom(graph.node[0])
                node.op_type = old
                yield Case(f"{found.name} as {old}", node, version, feeds)
    yield from _own_cases()


def _own_cases() -> Iterator[Case]:
    """What has no case at the version where it meant something else."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 4, 4)).astype(np.float32)
    for groups in (2, 3):
        per_group = {"scale": rng.standard_normal(groups), "bias": rng.standard_normal(groups)}
        feeds = {"x": x, **{name: array.astype(np.float32) for name, array in per_group.items()}}
        node = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=groups)
        yield Case(f"groupnorm_{groups}_groups", node, 18, feeds)
    for op_type in ("Softmax", "LogSoftmax", "Hardmax"):
        for axis in (0, 1, 2, None):
            attributes = {} if axis is None else {"axis": axis}
            node = helper.make_node(op_type, ["x"], ["y"], **attributes)
            yield Case(f"{op_type}_2d_axis_{axis}", node, 11, {"x": x})
    for axis in (0, 1, 2, 3, None):
        attributes = {} if axis is None else {"axis": axis}
        node = helper.make_node("Flatten", ["x"], ["y"], **attributes)
        yield Case(f"Flatten_{axis}", node, 9, {"x": x})
    bn = {n: np.abs(rng.standard_normal(6)).astype(np.float32) for n in ("s", "b", "m", "v")}
    node = helper.make_node("BatchNormalization", ["x", *bn], ["y"], epsilon=1e-3)
    yield Case("batchnorm", node, 7, {"x": x, **bn})
    for op_type in ("Dropout",):
        yield Case("dropout", helper.make_node(op_type, ["x"], ["y"], ratio=0.5), 7, {"x": x})
    for op_type in ("AveragePool", "MaxPool", "LpPool"):
        for ceil in (None, 0, 1):
            more = {} if ceil is None else {"ceil_mode": ceil}
            node = helper.make_node(op_type, ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], **more)
            yield Case(f"{op_type}_{ceil}", node, 10, {"x": x})


def back(case: Case, version: int) -> tuple[NodeProto, Feeds] | None:  # noqa: C901, PLR0912 - one case after the other
    """The case as its operator was written at an older version, or None where it cannot be said there."""
    new = _schema(case.node.op_type, case.version)
    if new is None or not new.inputs:
        new = _schema(_RENAMED.get(case.node.op_type, case.node.op_type), case.version)
    old = _schema(case.node.op_type, version)
    if old is None or new is None or not old.inputs:
        return None
    given = {}
    for at, name in enumerate(case.node.input):
        spec = new.inputs[min(at, len(new.inputs) - 1)]
        if spec.option == defs.OpSchema.FormalParameterOption.Variadic:
            given[f"{spec.name.lower()} {at}"] = name
        else:
            given[spec.name.lower()] = name
    node = NodeProto(op_type=case.node.op_type, name="under_test", output=case.node.output)
    feeds = dict(case.feeds)
    inputs: list[str] = []
    for at, spec in enumerate(old.inputs):
        if spec.option == defs.OpSchema.FormalParameterOption.Variadic:
            inputs += [name for key, name in given.items() if " " in key] or list(case.node.input[at:])
        else:
            same = given.get(spec.name.lower())
            if same is None and at < len(case.node.input) and len(new.inputs) == len(old.inputs):
                same = case.node.input[at]
            inputs.append(same or "")
    while inputs and not inputs[-1]:
        inputs.pop()
    node.input.extend(inputs)
    for attribute in case.node.attribute:
        if attribute.name in old.attributes:
            node.attribute.append(attribute)
    for name in old.attributes:
        source = given.get(name.lower())
        if source and source in feeds and source not in inputs:
            array = feeds[source]
            plain = array.reshape(-1).tolist()
            is_list = old.attributes[name].type in (defs.OpSchema.AttrType.INTS, defs.OpSchema.AttrType.FLOATS)
            if plain or is_list:
                if old.attributes[name].type == defs.OpSchema.AttrType.FLOATS:
                    plain = [float(one) for one in plain]
                kind = old.attributes[name].type.value
                node.attribute.append(helper.make_attribute(name, plain if is_list else plain[0], attr_type=kind))
    del node.output[len(old.outputs) if old.max_output < 1000 else len(node.output) :]
    return node, {name: feeds[name] for name in inputs if name in feeds}


def _schema(op_type: str, version: int) -> defs.OpSchema | None:
    try:
        return defs.get_schema(op_type, version)
    except defs.SchemaError:
        return None


def variants(node: NodeProto, feeds: Feeds, opset: int) -> Iterator[tuple[str, ModelProto, Feeds]]:
    """Models of one node: as it is, with constants behind the first input, with defaults left out, and inside a branch."""
    yield "plain", _model(node, feeds, opset, {}), feeds
    first = next(iter(feeds), None)
    constants = {name: array for name, array in feeds.items() if name != first}
    if constants:
        yield "constants", _model(node, feeds, opset, constants), {n: a for n, a in feeds.items() if n == first}
    if node.attribute:
        bare = NodeProto()
        bare.CopyFrom(node)
        required = {a.name for a in defs.get_schema(node.op_type, opset).attributes.values() if a.required}
        kept = [attribute for attribute in node.attribute if attribute.name in required]
        if len(kept) < len(node.attribute):
            del bare.attribute[:]
            bare.attribute.extend(kept)
            yield "defaults", _model(bare, feeds, opset, {}), feeds
    yield "branch", _branch(node, feeds, opset), feeds
    yield "named", _named(node, feeds, opset), feeds


def _model(node: NodeProto, feeds: Feeds, opset: int, constants: Feeds) -> ModelProto:
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
        if name not in constants
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "one", values, outputs, tensors)
    return _typed(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10))


def _branch(node: NodeProto, feeds: Feeds, opset: int) -> ModelProto:
    inner = _model(node, feeds, opset, {})
    outputs = inner.graph.output
    names = [value.name for value in outputs]
    body = helper.make_graph([node], "body", [], outputs)
    other = helper.make_graph([node], "other", [], outputs)
    # names must differ in the two branches
    for graph in (body, other):
        for made in graph.node:
            for at, name in enumerate(made.output):
                made.output[at] = name and f"{name}_{graph.name}"
        for value in graph.output:
            value.name = f"{value.name}_{graph.name}"
    condition = numpy_helper.from_array(np.array(True), "condition")
    choice = helper.make_node("If", ["condition"], names, then_branch=body, else_branch=other)
    graph = helper.make_graph([choice], "one", inner.graph.input, outputs, [condition])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _named(node: NodeProto, feeds: Feeds, opset: int) -> ModelProto:
    """Twice in one graph, with open shapes."""
    made = _model(node, feeds, opset, {})
    second = made.graph.node.add()
    second.CopyFrom(node)
    second.name = "under_test_too"
    for at, name in enumerate(second.output):
        second.output[at] = name and f"{name}_again"
    values = list(made.graph.output)
    for value in values:
        again = made.graph.output.add()
        again.CopyFrom(value)
        again.name += "_again"
    for value in made.graph.input:
        for at, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}_{at}"
    for value in made.graph.output:
        value.type.tensor_type.ClearField("shape")
    return made


def _typed(model: ModelProto) -> ModelProto:
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def run(model: ModelProto, feeds: Feeds) -> list[Any] | str:
    """The outputs, or what ONNX Runtime says."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, feeds)
    except Exception as error:  # noqa: BLE001 - onnxruntime's have no common class
        return str(error).strip().replace("\n", " ")


def compared(wanted: Sequence[Any], got: list[Any] | str) -> str:
    """ok, or what is wrong."""
    if isinstance(got, str):
        return "does not load or run"
    if len(wanted) != len(got):
        return "other outputs"
    worst = np.inf
    for x, y in zip(wanted, got, strict=True):
        if not isinstance(x, np.ndarray):
            continue
        if x.shape != y.shape or x.dtype != y.dtype:
            return f"shape {x.shape} {x.dtype} became {y.shape} {y.dtype}"
        if x.dtype.kind in "OSUT":
            if not np.array_equal(x, y):
                return "other text"
            continue
        a, b = x.astype(np.complex128), y.astype(np.complex128)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return "other NaN or infinity"
        a, b = np.where(np.isfinite(a), a, 0), np.where(np.isfinite(b), b, 0)
        noise, signal = float((np.abs(a - b) ** 2).sum()), float((np.abs(a) ** 2).sum())
        if noise:
            worst = min(worst, 10 * np.log10(signal / noise) if signal else -np.inf)
    return "ok" if worst > _NEAR_DB else f"differs ({worst:.0f} dB)"


def step(model: ModelProto, feeds: Feeds, target: int) -> tuple[str, str, str] | None:
    """What became of a model by the converter, by `raise_opset` and by the number alone; None: it does not run at all."""
    wanted = run(model, feeds)
    if isinstance(wanted, str):
        return None
    again = run(model, feeds)
    if compared(wanted, again) != "ok":
        return None  # random
    try:
        converter = compared(wanted, run(version_converter.convert_version(model, target), feeds))
    except Exception as error:  # noqa: BLE001 - whatever its C++ side throws
        converter = "refused: " + str(error).strip().replace("\n", " ")[:60]
    try:
        ours = compared(wanted, run(_raised(model, target), feeds))
    except SourceError:
        ours = "refused"
    numbered = ModelProto()
    numbered.CopyFrom(model)
    numbered.opset_import[0].version = target
    return converter, ours, compared(wanted, run(numbered, feeds))


def _raised(model: ModelProto, target: int) -> ModelProto:
    """The model as a conversion would raise it; SourceError where it would refuse."""
    source = Source(model)
    before = source.copied()
    source.proto, _ = raise_opset(source.proto, target, "model")
    check_raised(before, source, 1 << 30)
    return filled(source)


def table(wanted: Sequence[str]) -> dict[tuple[str, int, int], Step]:  # noqa: C901 - one walk
    """Every step of every operator."""
    versions: dict[str, list[int]] = defaultdict(list)
    for schema in defs.get_all_schemas_with_history():
        if not schema.domain:
            versions[schema.name].append(schema.since_version)
    found: dict[tuple[str, int, int], Step] = {
        (op, old, new): Step()
        for op, all_of in sorted(versions.items())
        for old, new in zip(sorted(all_of), sorted(all_of)[1:], strict=False)
        if _OLDEST < new <= _HIGHEST and (not wanted or op in wanted)
    }
    for case in cases():
        for op, old, new in [key for key in found if key[0] == case.node.op_type]:
            if old > case.version:
                continue
            try:
                made = back(case, old)
            except (ValueError, TypeError):  # what cannot be said at this version
                made = None
            if made is None:
                continue
            node, feeds = made
            for what, model, given in _safe(node, feeds, new - 1):
                results = step(model, given, new)
                if results is None:
                    continue
                row = found[op, old, new]
                row.converter[results[0]] += 1
                row.ours[results[1]] += 1
                row.number_alone[results[2]] += 1
                if results[1] != "ok" and results[1] != "refused":
                    row.wrong.append(f"{case.name} ({what})")
    return found


def _safe(node: NodeProto, feeds: Feeds, opset: int) -> Iterator[tuple[str, ModelProto, Feeds]]:
    try:
        yield from variants(node, feeds, opset)
    except Exception:  # noqa: BLE001 - what cannot be said at this version
        return


def _said(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.most_common())


def main() -> int:
    """Print the table; 1 where `raise_opset` lets a wrong model through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", action="append", default=[], help="only this operator")
    parser.add_argument("--all", action="store_true", help="steps where all is well too")
    chosen = parser.parse_args()
    found = table(chosen.op)
    print("| operator | step | converter alone | splitquant | the number alone |\n|---|---|---|---|---|")
    for (op, old, new), row in found.items():
        if chosen.all or set(row.converter) - {"ok"} or set(row.ours) - {"ok"}:
            print(f"| {op} | {old} -> {new} | {_said(row.converter)} | {_said(row.ours)} | {_said(row.number_alone)} |")
    run_ = sum(1 for row in found.values() if row.converter)
    untested = [f"{op} {old}->{new}" for (op, old, new), row in found.items() if not row.converter]
    wrong = [f"{key}: {row.wrong}" for key, row in found.items() if row.wrong]
    print(f"\n{len(found)} steps, {run_} run; not run, since ONNX Runtime or no case has them: {', '.join(untested)}")
    print(f"let through although wrong: {len(wrong)}")
    for one in wrong:
        print("  ", one[:300])
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
