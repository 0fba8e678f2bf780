"""``transformer_blocks`` against its eager meaning, and against the native ops one by one."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from cases.blocks import EPS, LAYOUTS, MATRICES, BlockCase, make_block_case
from rdkernels.backends import native
from rdkernels.errors import ArgumentError
from rdkernels.ops import BLOCK_TENSORS, OPS, PLACEMENTS, transformer_blocks
from tests.support.checking import (
    FLOAT_DTYPES,
    NAN,
    assert_close_to_reference,
    assert_same_bits,
    layouts,
)

OP = "transformer_blocks"
needs_native = pytest.mark.skipif(
    native.load_error() is not None, reason=f"no native kernels: {native.load_error()}"
)
layout = pytest.mark.parametrize("layout", LAYOUTS)
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES)
rotations = pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "half"])


def build(name, **changes):
    start, lengths, options = LAYOUTS[name]
    return make_block_case(start, lengths, **(options | changes))


def run(case, provider, last_norm=True):
    """On a fresh copy of the caches: the result, and the copy."""
    used = case.fresh()
    arguments = used.block_arguments()
    options = {"eps": EPS, "scale": used.scale, "interleaved": used.interleaved}
    options["placement"] = used.placement
    norm = used.last_norm if last_norm else None
    out = transformer_blocks(*arguments[:9], **options, last_norm=norm, backend=provider)
    return out, used


def check_values(case, provider, last_norm=True):
    """In fp32: in 16 bits one rounding less or more, compounded, is as large as many a fault.

    There the native provider must have every bit of the ops one by one, whose values are tested by
    themselves in every dtype.
    """
    out, used = run(case, provider, last_norm)
    same, same_used = run(case, "eager", last_norm)
    exact, exact_used = run(case.widened(), "eager", last_norm)
    assert_close_to_reference(out, same, exact)
    for triple in zip(used.caches, same_used.caches, exact_used.caches, strict=True):
        assert_close_to_reference(*triple)


@layout
@pytest.mark.parametrize("last_norm", [True, False], ids=["normed", "hidden"])
def test_values(layout, last_norm, provider, device, seed):
    check_values(build(layout).to(device), provider, last_norm)


@layout
def test_result_is_contiguous_and_finite(layout, provider, device, dtype, seed):
    out, _ = run(build(layout, dtype=dtype).to(device), provider)
    assert out.dtype == dtype and out.is_contiguous() and torch.isfinite(out).all()


def mixed_case(field, dtype):
    """With one int8 matrix, in the second block."""
    plain, scale = build("batch", dtype=dtype), MATRICES[field]
    quantized = plain.int8()
    weights = list(plain.weights)
    for index in (at(field), at(scale)):
        weights[index] = quantized.weights[index]
    return replace(plain, weights=weights)


@pytest.mark.parametrize("field", MATRICES)
def test_any_matrix_may_be_int8(field, provider, device, seed):
    check_values(mixed_case(field, torch.float32).to(device), provider)


def check_bits(case, last_norm=True, one_by_one=BlockCase.op_by_op):
    out, used = run(case, "native", last_norm)
    again = case.fresh()
    assert_same_bits(out, one_by_one(again, case.hidden, last_norm))
    for got, want in zip(used.caches, again.caches, strict=True):
        assert_same_bits(got, want)


@needs_native
@layout
@dtypes
@rotations
@pytest.mark.parametrize("last_norm", [True, False], ids=["normed", "hidden"])
def test_native_has_the_bits_of_the_ops_one_by_one(layout, last_norm, interleaved, dtype, seed):
    check_bits(build(layout, dtype=dtype, interleaved=interleaved), last_norm)


@needs_native
@layout
@dtypes
@pytest.mark.parametrize("last_norm", [True, False], ids=["normed", "hidden"])
def test_the_model_goes_op_by_op_to_the_same_bits(layout, last_norm, dtype, seed):
    case = build(layout, dtype=dtype, interleaved=True)
    check_bits(case, last_norm, BlockCase.by_the_model)


@needs_native
@dtypes
@pytest.mark.parametrize("field", MATRICES)
def test_native_has_these_bits_where_a_matrix_is_int8(field, dtype, seed):
    check_bits(mixed_case(field, dtype))


STYLES = pytest.mark.parametrize(
    ("placement", "interleaved", "bias"),
    list(itertools.product(PLACEMENTS, [True, False], [True, False])),
)


@needs_native
@STYLES
@dtypes
def test_native_has_the_bits_of_every_style(placement, interleaved, bias, dtype, seed):
    """Of the ops one by one; and in the right order, whether or not there is a last norm."""
    style = {"placement": placement, "interleaved": interleaved, "bias": bias}
    case = build("inactive and padding", dtype=dtype, **style)
    for last_norm in (True, False):
        out, used = run(case, "native", last_norm)
        again = case.fresh()
        assert_same_bits(out, again.op_by_op(case.hidden, last_norm))
        for got, want in zip(used.caches, again.caches, strict=True):
            assert_same_bits(got, want)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_order_of_tensors(placement, provider, device, seed):
    """Both sides of the binding call each tensor of a block by the same name."""
    arguments = arguments_of(build("batch", placement=placement).to(device))
    weights = list(arguments["weights"])
    for field in BLOCK_TENSORS[placement]:
        index = at(field, 1, placement)
        arguments["weights"] = replaced(weights, index, torch.ones(3, 5, 7).to(device))
        where = rf"^{OP}: weights\[{index}\] \({field} of block 1\): expected "
        with pytest.raises(ArgumentError, match=where):
            transformer_blocks(**arguments, placement=placement, backend=provider)


def test_unknown_placements(provider, device, seed):
    arguments = arguments_of(build("batch").to(device))
    with pytest.raises(ArgumentError, match=rf"^{OP}: placement: expected one of .*got 'huginn'"):
        transformer_blocks(**arguments, placement="huginn", backend=provider)
    message = "11 tensors for each of at least one block, got 26 tensors"
    with pytest.raises(ArgumentError, match=rf"^{OP}: weights: expected {message}"):
        transformer_blocks(**arguments, placement="pre", backend=provider)


def test_cells_of_other_rows_are_not_touched(provider, device, dtype, seed):
    """Cells that nobody may read keep their NaN; history and cells of inactive rows their K/V."""
    case = build("inactive and padding", dtype=dtype).to(device)
    out, used = run(case, provider)
    assert torch.isfinite(out).all()
    for now, then in zip(used.caches, case.caches, strict=True):
        kept = (now == then) | (now.isnan() & then.isnan())
        assert (~kept).flatten(2).any(2).sum() == case.live.sum()


def test_a_bad_row_leaves_its_neighbours_alone(provider, device, dtype, seed):
    """Rows of other sequences, that is: its own attends to its K/V."""
    case = build("batch", dtype=dtype).to(device)
    want, _ = run(case, provider)
    case.hidden[5] = NAN  # the only row of the second sequence
    out, _ = run(case, provider)
    others = [row for row in range(15) if row != 5]
    assert_same_bits(out[others], want[others])
    assert out[5].isnan().all()


def in_other_layouts(case):
    """``case`` with its hidden states, and with one weight, in every layout."""
    for hidden in layouts(case.hidden):
        yield replace(case, hidden=hidden)
    wqkv = at("wqkv")
    for variant in layouts(case.weights[wqkv]):
        yield replace(case, weights=replaced(case.weights, wqkv, variant))


def test_layouts_of_hidden_and_weights(provider, device, seed):
    for other in in_other_layouts(build("grouped").to(device)):
        check_values(other, provider)


@needs_native
@dtypes
def test_layouts_change_no_bit(dtype, seed):
    case = build("grouped", dtype=dtype)
    want, _ = run(case, "native")
    for other in in_other_layouts(case):
        assert_same_bits(run(other, "native")[0], want)


@needs_native
@dtypes
@pytest.mark.parametrize("last_norm", [True, False], ids=["normed", "hidden"])
def test_out_between_other_columns(last_norm, dtype, seed):
    """Where the sampler wants it: in one half of a wider matrix."""
    case = build("batch", dtype=dtype)
    want, _ = run(case, "native", last_norm)
    wide = torch.full((15, 2 * 48), NAN, dtype=dtype)
    native.function(OP)(*case.fresh().block_arguments(last_norm), out=(wide[:, 48:],))
    assert_same_bits(wide[:, 48:], want)
    assert wide[:, :48].isnan().all()


@needs_native
@pytest.mark.parametrize("layout", ["batch", "pre", "post"])
def test_out_may_be_the_input(layout, seed):
    case = build(layout)
    want, _ = run(case, "native")
    native.function(OP)(*case.fresh().block_arguments(), out=(case.hidden,))
    assert_same_bits(case.hidden, want)


@needs_native
@dtypes
def test_threads_and_repeats_change_no_bit(dtype, seed):
    """Wide enough for several threads; and a small call after a large one, in the same memory."""
    wide = {"width": 512, "heads": 8, "kv_heads": 8, "head_dim": 64, "mlp_width": 700}
    case = make_block_case([100, 3], [40, 9], dtype=dtype, **wide)
    small = build("padding", dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    one, first = run(case, "native"), run(small, "native")
    torch.set_num_threads(2)
    two, second = run(case, "native"), run(small, "native")
    torch.set_num_threads(before)
    assert_same_bits(one[0], two[0])
    assert_same_bits(first[0], second[0])
    for a, b in zip(one[1].caches, two[1].caches, strict=True):
        assert_same_bits(a, b)


def test_gradients(seed):
    case = build("no history", dtype=torch.float64, blocks=1, width=6, mlp_width=5)
    hidden = case.hidden.requires_grad_()

    def function(hidden):
        arguments = case.fresh().block_arguments()
        return transformer_blocks(hidden, *arguments[1:9], eps=EPS, last_norm=case.last_norm)

    assert torch.autograd.gradcheck(function, (hidden,), atol=1e-6, rtol=1e-4)


def arguments_of(case):
    names = [a.name for a in OPS[OP].default._schema.arguments]
    named = dict(zip(names, case.block_arguments(), strict=True))
    return {
        name: named[name]
        for name in names
        if name not in ("eps", "scale", "placement", "interleaved")
    }


def at(field, block=1, placement="sandwich"):
    names = BLOCK_TENSORS[placement]
    return block * len(names) + names.index(field)


# Case "batch": 15 rows, D = 48, H = 4, HK = 2, d = 8, F = 40, two blocks.
BAD_WEIGHTS = [
    ("norm_1", torch.ones(47), r"float32\[48\] on .*, got float32\[47\] on"),
    ("norm_4", torch.ones(48).half(), r"float32\[48\] on .*, got float16\[48\] on"),
    ("wqkv", torch.ones(64, 47), r"float32\[\*, 48\] on .*, got float32\[64, 47\]"),
    ("wqkv", torch.ones(72, 48), r"float32\[64, 48\] on .*, got float32\[72, 48\]"),
    ("qk_bias", torch.ones(6, 7), r"float32\[6, 8\] on .*, got float32\[6, 7\]"),
    ("qk_bias", torch.ones(0, 8), r"float32\[6, 8\] on .*, got float32\[0, 8\]"),
    ("attn_proj", torch.ones(48, 31), r"float32\[48, 32\] on .*, got float32\[48, 31\]"),
    ("mlp_fc", torch.ones(82, 48), r"float32\[80, 48\] on .*, got float32\[82, 48\]"),
    ("mlp_proj", torch.ones(48, 40).int(), r"float32\[48, 40\] on .*, got int32\[48, 40\]"),
    ("mlp_proj", torch.ones(40, 48), r"float32\[48, 40\] on .*, got float32\[40, 48\]"),
    ("wqkv_scale", torch.ones(64), r"an empty tensor .*, got float32\[64\] on"),
    ("mlp_proj_scale", torch.ones(48), r"an empty tensor .*, got float32\[48\] on"),
]
BAD_INT8_WEIGHTS = [
    ("wqkv", torch.ones(64, 47).char(), r"int8\[\*, 48\] on .*, got int8\[64, 47\]"),
    ("mlp_proj", torch.ones(48, 41).char(), r"int8\[48, 40\] on .*, got int8\[48, 41\]"),
    ("wqkv_scale", torch.ones(0), r"float32\[64\] on .*, got float32\[0\] on"),
    ("attn_proj_scale", torch.ones(1), r"float32\[48\] on .*, got float32\[1\] on"),
    ("mlp_fc_scale", torch.ones(80).half(), r"float32\[80\] on .*, got float16\[80\] on"),
    ("mlp_proj_scale", torch.ones(48, 1), r"float32\[48\] on .*, got float32\[48, 1\] on"),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD_WEIGHTS)
def test_bad_weights(field, value, message, provider, device, seed):
    check_refused(build("batch"), field, value, message, provider, device)


@pytest.mark.parametrize(("field", "value", "message"), BAD_INT8_WEIGHTS)
def test_bad_int8_weights(field, value, message, provider, device, seed):
    check_refused(build("batch", int8=True), field, value, message, provider, device)


def check_refused(case, field, value, message, provider, device):
    """Of the second block."""
    arguments = arguments_of(case.to(device))
    transformer_blocks(**arguments, backend=provider)
    arguments["weights"] = list(arguments["weights"])
    arguments["weights"][at(field)] = value
    where = rf"^{OP}: weights\[{at(field)}\] \({field} of block 1\): expected "
    with pytest.raises(ArgumentError, match=where + message):
        transformer_blocks(**arguments, backend=provider)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("wqkv", torch.ones(60, 48), r"first size \(heads \+ 2 \* 2\) \* 8, .*, got .*\[60, 48\]"),
        ("wqkv", torch.ones(56, 48), r"first size .*, heads a multiple of 2, got .*\[56, 48\]"),
        ("mlp_fc", torch.ones(81, 48), r"an even first size \(gate \| up\), got .*\[81, 48\]"),
    ],
)
def test_bad_first_block(field, value, message, provider, device, seed):
    arguments = arguments_of(build("batch").to(device))
    arguments["weights"] = list(arguments["weights"])
    arguments["weights"][at(field, 0)] = value
    where = rf"^{OP}: weights\[{at(field, 0)}\] \({field} of block 0\): expected "
    with pytest.raises(ArgumentError, match=where + message):
        transformer_blocks(**arguments, backend=provider)


def replaced(values, index, value):
    return [*values[:index], value, *values[index + 1 :]]


BAD_ARGUMENTS = {
    "rank": ("hidden", lambda a: a["hidden"][0], "hidden", r".*\[\*, \*\].*got float32\[48\]"),
    "weights": (
        "weights",
        lambda a: a["weights"][:-1],
        "weights",
        "13 tensors for each of at least one block, got 25 tensors",
    ),
    "no blocks": ("weights", lambda a: [], "weights", "13 tensors .*, got 0 tensors"),
    "keys": (
        "key_caches",
        lambda a: a["key_caches"][:1],
        "key_caches",
        "2 tensors, one per block, got 1 tensors",
    ),
    "values": (
        "value_caches",
        lambda a: a["value_caches"] * 2,
        "value_caches",
        "2 tensors, one per block, got 4 tensors",
    ),
    "key shape": (
        "key_caches",
        lambda a: replaced(a["key_caches"], 1, a["key_caches"][1][1:]),
        r"key_caches\[1\]",
        r"float32\[.*, 16, 2, 8\] on .*, got float32",
    ),
    "value dtype": (
        "value_caches",
        lambda a: replaced(a["value_caches"], 0, a["value_caches"][0].half()),
        r"value_caches\[0\]",
        r"float32\[.*, 16, 2, 8\] on .*, got float16",
    ),
    "odd head_dim": (
        "key_caches",
        lambda a: [cache[..., :7].contiguous() for cache in a["key_caches"]],
        r"value_caches\[0\]",
        r"float32\[.*, 16, 2, 7\]",
    ),
    "cos_sin": ("cos_sin", lambda a: a["cos_sin"][:, :6], "cos_sin", r"float32\[\*, 8\] on"),
    "start": ("start", lambda a: a["start"].long(), "start", r"int32\[\*\] on .*, got int64"),
    "cu_rows": ("cu_rows", lambda a: a["cu_rows"][1:], "cu_rows", r"int32\[4\] on .*, got"),
    "table": ("page_table", lambda a: a["page_table"][1:], "page_table", r"int32\[3, \*\] on"),
    "active": ("active", lambda a: torch.ones(14).bool(), "active", r"bool\[15\] on .*, got"),
    "last_norm": ("last_norm", lambda a: torch.ones(47), "last_norm", r"float32\[48\] on .*, got"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name, provider, device, seed):
    argument, change, named, message = BAD_ARGUMENTS[name]
    arguments = arguments_of(build("batch").to(device))
    transformer_blocks(**arguments, backend=provider)
    arguments[argument] = change(arguments)
    with pytest.raises(ArgumentError, match=rf"^{OP}: {named}: expected {message}"):
        transformer_blocks(**arguments, backend=provider)


@needs_native
@pytest.mark.parametrize(
    ("argument", "index", "value", "message"),
    [
        ("cu_rows", 3, 16, "prefix sums up to 15, got 6 and 16 for sequence 2"),
        ("start", 1, -1, "positions within .*, got -1 to -1 for sequence 1"),
        ("page_table", (0, 0), 999, "pages below .*, got 999 for sequence 0"),
    ],
)
def test_native_refuses_a_wrong_layout(argument, index, value, message, seed):
    arguments = arguments_of(build("batch"))
    arguments[argument] = arguments[argument].clone()
    arguments[argument][index] = value
    with pytest.raises(ArgumentError, match=rf"^{OP}: {argument}: expected {message}"):
        transformer_blocks(**arguments, backend="native")


@needs_native
def test_caches_must_have_contiguous_pages(seed):
    arguments = arguments_of(build("batch"))
    strided = arguments["key_caches"][1].transpose(1, 2).contiguous().transpose(1, 2)
    arguments["key_caches"] = replaced(arguments["key_caches"], 1, strided)
    with pytest.raises(ArgumentError, match=r"key_caches\[1\]: expected contiguous pages"):
        transformer_blocks(**arguments, backend="native")


def test_bad_dtype(seed):
    arguments = arguments_of(build("batch"))
    arguments["hidden"] = arguments["hidden"].int()
    with pytest.raises(ArgumentError, match=rf"^{OP}: hidden: expected float32\|.*, got int32"):
        transformer_blocks(**arguments)
