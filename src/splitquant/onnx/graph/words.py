"""What the version converter drops though it changes no number: metadata, comments, denotations, annotations of ranges."""

from __future__ import annotations

from contextlib import suppress

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

_Described = ModelProto | GraphProto | NodeProto | TensorProto | ValueInfoProto


def copy_words(old: _Described, new: _Described) -> None:
    """Give a node, a value or a tensor the comment and the metadata of what it was made from."""
    del new.metadata_props[:]
    new.metadata_props.extend(old.metadata_props)
    _copy_text(old, new, "doc_string")


def _copy_text(old: _Described, new: _Described, *fields: str) -> None:
    for field in fields:
        if old.HasField(field):
            with suppress(UnicodeDecodeError):  # Latin-1, which protobuf passes on whole messages of, and no fields
                setattr(new, field, getattr(old, field))


def restore_words(old: ModelProto, new: ModelProto) -> None:
    """Give a model that the converter made all that the one before said."""
    copy_words(old, new)
    _copy_text(old, new, "producer_name", "producer_version", "domain", "model_version")
    _restore(old.graph, new.graph)


def _restore(old: GraphProto, new: GraphProto) -> None:
    copy_words(old, new)
    _copy_text(old, new, "name")
    del new.quantization_annotation[:]
    new.quantization_annotation.extend(old.quantization_annotation)
    values = {value.name: value for value in (*old.input, *old.output, *old.value_info)}
    for value in (*new.input, *new.output, *new.value_info):
        if value.name in values:
            copy_words(values[value.name], value)
            _copy_denotation(values[value.name].type, value.type)
    tensors = {tensor.name: tensor for tensor in old.initializer}
    for tensor in new.initializer:
        if tensor.name in tensors:
            copy_words(tensors[tensor.name], tensor)
    nodes = {tuple(node.output): node for node in old.node}
    for node in new.node:
        before = nodes.get(tuple(node.output))
        if before is None:
            continue
        copy_words(before, node)
        graphs = {attribute.name: attribute.g for attribute in before.attribute if attribute.HasField("g")}
        for attribute in node.attribute:
            if attribute.HasField("g") and attribute.name in graphs:
                _restore(graphs[attribute.name], attribute.g)


def _copy_denotation(old: TypeProto, new: TypeProto) -> None:
    """What a value stands for, and its axes ("DATA_BATCH")."""
    if old.denotation:
        new.denotation = old.denotation
    for dim, kept in zip(new.tensor_type.shape.dim, old.tensor_type.shape.dim, strict=False):
        if kept.denotation:
            dim.denotation = kept.denotation
