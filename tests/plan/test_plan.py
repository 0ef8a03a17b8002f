"""Plans: sizes that equal what is made, patterns that win over rules, and a reason for every tensor."""

from dataclasses import dataclass
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from any_spec import specs
from splitquant.core.rows import pack_row_scale
from splitquant.core.spec import EMBEDDING, QuantSpec
from splitquant.core.split import level_planes, quantize_array
from splitquant.errors import SpecError
from splitquant.format.planes import geometry, planes_of
from splitquant.plan.plan import Recipe, plan_tensors

SIZES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "U8": 1}


@dataclass(frozen=True)
class Header:
    """A tensor's header, as in a safetensors file."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "BF16"

    @property
    def nbytes(self) -> int:
        """Its size."""
        return prod(self.shape) * SIZES[self.dtype]


EMBED, HEAD, UP = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"
DOWN, NORM, ROUTER = "model.layers.0.mlp.down_proj.weight", "model.norm.weight", "model.layers.0.mlp.gate.weight"
POSITION = "model.embed_positions.weight"
MODEL = (
    Header(EMBED, (1000, 128)),
    Header(UP, (256, 128)),
    Header(DOWN, (128, 256)),
    Header(ROUTER, (64, 128)),
    Header(POSITION, (64, 128)),
    Header(NORM, (128,)),
    Header(HEAD, (1000, 128)),
)


def planned(recipe=None, tensors=MODEL, config=None):
    """The plan by tensor name."""
    return {t.name: t for t in plan_tensors(tensors, config or {}, recipe or Recipe()).tensors}


def test_default_plan():
    """Weights get the spec, embeddings and heads theirs, and the rest is kept with a reason."""
    plan = planned()
    assert list(plan) == [tensor.name for tensor in MODEL]
    assert plan[UP].spec == plan[DOWN].spec == QuantSpec()
    assert plan[EMBED].spec == plan[HEAD].spec == EMBEDDING
    assert plan[ROUTER].spec is plan[POSITION].spec is plan[NORM].spec is None
    for tensor in plan.values():
        assert (tensor.spec is None) == bool(tensor.reason)
        assert tensor.weights == prod(tensor.shape)


def test_sums():
    """A plan's bytes are those of its tensors, before and after."""
    plan = plan_tensors(MODEL, {}, Recipe())
    assert plan.source_bytes == sum(tensor.nbytes for tensor in MODEL)
    assert plan.stored_bytes == sum(tensor.stored_bytes for tensor in plan.tensors)
    assert plan.stored_bytes < plan.source_bytes
    assert [tensor.name for tensor in plan.quantized] == [EMBED, UP, DOWN, HEAD]


def test_kept_tensors_keep_name_and_size():
    """A kept tensor has no planes and its own bytes."""
    kept = planned()[NORM]
    assert (kept.stored, kept.stored_bytes) == ([(NORM, kept.dtype, kept.shape)], kept.nbytes)


def test_stored_names():
    """A quantized tensor is stored as its planes, each under the tensor's name."""
    plan = planned()
    assert [name for name, _, _ in plan[UP].stored] == [
        f"{UP}.{p}" for p in ("codes", "clusters", "scale", "offset", "row_scale", "shape")
    ]
    assert f"{EMBED}.clusters" not in [name for name, _, _ in plan[EMBED].stored]
    tensor = planned(Recipe(QuantSpec(granularity="tensor")))[UP]
    assert f"{UP}.row_scale" not in [name for name, _, _ in tensor.stored]


def test_bytes_by_hand():
    """256 x 128 at 4 + 2 bits: 16384 + 8192 bytes of planes, two vectors of four floats, 256 bf16 scales, two integers."""
    assert planned()[UP].stored_bytes == 256 * 64 + 256 * 32 + 2 * 4 * 4 + 256 * 2 + 2 * 8


@dataclass(frozen=True)
class Choice:
    """Patterns, a tensor, and what must become of it."""

    name: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    tensor: str
    quantized: bool
    reason: str


@pytest.mark.parametrize(
    "case",
    [
        Choice("excluded", (), ("*.up_proj.weight",), UP, False, "excluded by '*.up_proj.weight'"),
        Choice("not excluded", (), ("*.up_proj.weight",), DOWN, True, ""),
        Choice("excluded embedding", (), (EMBED,), EMBED, False, f"excluded by '{EMBED}'"),
        Choice("exclude before the rule", (), ("*.gate.weight",), ROUTER, False, "excluded by '*.gate.weight'"),
        Choice("include beats a rule", ("*.gate.weight",), (), ROUTER, True, "included by '*.gate.weight'"),
        Choice("include beats exclude", ("*up_proj*",), ("model.layers.*",), UP, True, "included by '*up_proj*'"),
        Choice(
            "only what is included", ("*up_proj*",), ("model.layers.*",), DOWN, False, "excluded by 'model.layers.*'"
        ),
        Choice("include of a position", (POSITION,), (), POSITION, True, f"included by '{POSITION}'"),
        Choice("include of an embedding", (EMBED,), ("*",), EMBED, True, f"included by '{EMBED}'"),
        Choice("include cannot do the impossible", ("model.norm.*",), (), NORM, False, "1-D"),
        Choice("the first pattern is named", ("*up*", "*proj*"), (), UP, True, "included by '*up*'"),
        Choice("a class of characters", (), ("lm_hea[d].weight",), HEAD, False, "excluded by 'lm_hea[d].weight'"),
    ],
    ids=lambda case: case.name,
)
def test_include_wins_over_exclude_wins_over_rules(case):
    """Patterns decide in this order, and the reason names the one that did."""
    found = planned(Recipe(include=case.include, exclude=case.exclude))[case.tensor]
    assert (found.spec is not None) == case.quantized
    assert case.reason in found.reason
    assert bool(case.reason) == bool(found.reason)


def test_include_wins_over_kept_embeddings():
    """An embedding that is asked for by name is quantized even where embeddings are kept."""
    plan = planned(Recipe(embeddings=None, include=(HEAD,)))
    assert plan[HEAD].spec == QuantSpec()
    assert plan[HEAD].reason == f"included by '{HEAD}'"
    assert plan[EMBED].spec is None
    assert "embedding" in plan[EMBED].reason


def test_embeddings_have_their_own_spec():
    """The recipe's second spec is for embeddings and heads alone, included or not."""
    spec = QuantSpec(6, 1)
    plan = planned(Recipe(embeddings=spec, include=(HEAD,)))
    assert plan[EMBED].spec == plan[HEAD].spec == spec
    assert plan[UP].spec == QuantSpec()


@pytest.mark.parametrize("patterns", [{"include": ("*.nothing",)}, {"exclude": ("*.nothing",)}], ids=str)
def test_a_pattern_without_a_tensor_is_refused(patterns):
    """A pattern that matches nothing is most likely a slip, so it is an error that names it."""
    with pytest.raises(
        SpecError, match=r"the pattern '\*\.nothing' matches none of the 7 tensors; .*splitquant inspect"
    ):
        planned(Recipe(**patterns))


def test_patterns_know_upper_case():
    """Patterns are matched with the case of letters, on every system."""
    with pytest.raises(SpecError, match="matches none"):
        planned(Recipe(exclude=("LM_HEAD.weight",)))


def test_what_would_not_get_smaller_is_kept():
    """A tensor whose planes are as large as itself stays, and the reason says both sizes."""
    small = Header("a.weight", (2, 3))
    found = planned(tensors=(small,))["a.weight"]
    planes = planes_of((2, 3), 0, False, "bf16", QuantSpec())
    assert found.spec is None
    assert found.reason == f"would not get smaller ({sum(p.nbytes for p in planes)} bytes instead of 12)"
    assert found.stored_bytes == 12


def test_included_tensors_must_get_smaller_too():
    """Asking by name does not make a file larger."""
    found = planned(Recipe(include=("a.weight",)), (Header("a.weight", (2, 3)),))["a.weight"]
    assert found.spec is None
    assert "would not get smaller" in found.reason


def test_fp8_has_to_get_smaller_than_fp8():
    """An fp8 tensor is one byte per weight: 8 bits and ids are no gain, 4 bits and ids are."""
    tensors = (Header(UP, (256, 128), "F8_E4M3"),)
    assert planned(Recipe(QuantSpec(8, 4)), tensors)[UP].spec is None
    assert planned(Recipe(QuantSpec(4, 4)), tensors)[UP].spec is not None


def test_an_empty_folder():
    """No tensors, no plan, no error; but no pattern can match."""
    plan = plan_tensors((), {}, Recipe())
    assert (plan.tensors, plan.source_bytes, plan.stored_bytes) == ((), 0, 0)
    with pytest.raises(SpecError, match="matches none of the 0 tensors"):
        plan_tensors((), {}, Recipe(include=("*",)))


def test_plans_are_values():
    """The same headers give an equal plan; any iterable of headers will do."""
    assert plan_tensors(MODEL, {}, Recipe()) == plan_tensors(iter(MODEL), {}, Recipe())


def test_model_type_reaches_the_roles():
    """The configuration decides about axes."""
    header = Header("transformer.h.0.mlp.c_fc.weight", (128, 512))
    plan = planned(tensors=(header,), config={"model_type": "gpt2"})[header.name]
    assert plan.role.axis == 1
    assert plan.weight(plan.spec).planes[0].shape == (512, 64)


NUMPY = {"U8": np.uint8, "BF16": np.uint16, "F16": np.float16, "F32": np.float32, "I64": np.int64}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple),
    st.sampled_from(["bf16", "fp16", "fp32"]),
    st.booleans(),
    specs(granularities=["tensor", "channel", "group:2", "group:5", "group:32"]),
    st.integers(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_planned_planes_are_those_that_are_made(shape, kind, stack, spec, axis, seed):
    """Names, dtypes, shapes and bytes of planes are known before any weight is read."""
    stack = stack and len(shape) == 3
    axis += stack
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(shape).astype(np.float16 if kind == "fp16" else np.float32)
    if kind == "bf16":
        array = (array.view(np.uint32) >> 16).astype(np.uint16)
    splits = [quantize_array(part, spec, axis - 1) for part in array] if stack else [quantize_array(array, spec, axis)]
    made = {
        "codes": [s.codes for s in splits],
        **{name: [getattr(s, name) for s in splits] for name in level_planes(spec, splits[0])},
    }
    if spec.cluster_bits:
        made["clusters"] = [s.clusters for s in splits]
    if spec.granularity.kind != "tensor":
        made["row_scale"] = [pack_row_scale(s.row_scale, s.row_scale_kind) for s in splits]
    made = {name: np.stack(planes) if stack else planes[0] for name, planes in made.items()}
    made["shape"] = np.array(shape, np.int64)
    planned = planes_of(shape, axis, stack, kind, spec)
    assert {plane.name for plane in planned} == set(made)
    for plane in planned:
        assert plane.shape == made[plane.name].shape
        assert NUMPY[plane.dtype] == made[plane.name].dtype
        assert plane.nbytes == made[plane.name].nbytes
    if not stack:
        bits = 8 * sum(plane.nbytes for plane in planned if plane.name != "shape") / array.size
        assert splits[0].bits_per_weight == pytest.approx(bits)


@dataclass(frozen=True)
class Matrices:
    """A tensor, its axis, and the matrices it falls into."""

    shape: tuple[int, ...]
    axis: int
    stack: bool
    count: int
    rows: int
    cols: int


@pytest.mark.parametrize(
    "case",
    [
        Matrices((6, 4), 0, False, 1, 6, 4),
        Matrices((6, 4), 1, False, 1, 4, 6),
        Matrices((8, 3, 5, 5), 0, False, 1, 8, 75),
        Matrices((7, 6, 4), 1, True, 7, 6, 4),
        Matrices((7, 6, 4), 2, True, 7, 4, 6),
    ],
    ids=str,
)
def test_geometry(case):
    """A tensor is one matrix of its channels; a stack is as many as it has experts, and `axis` counts in the whole."""
    found = geometry(case.shape, case.axis, case.stack)
    assert (found.count, found.rows, found.cols) == (case.count, case.rows, case.cols)
    assert found.matrix_shape[found.axis] == case.rows


@pytest.mark.parametrize(
    ("dtype", "kind"), [("BF16", "bf16"), ("F16", "fp16"), ("F32", "fp32"), ("F64", "fp32"), ("F8_E4M3", "bf16")]
)
def test_kind_of_a_plan(dtype, kind):
    """float64 is read as float32, fp8 as bf16."""
    assert planned(tensors=(Header(UP, (256, 128), dtype),))[UP].weight(QuantSpec()).kind == kind
