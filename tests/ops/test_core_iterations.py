"""``core_iterations`` against its eager meaning, and against the native ops one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cases.blocks import LAYOUTS, make_block_case
from rdkernels.backends import native
from rdkernels.errors import ArgumentError
from rdkernels.models.weights import values_and_scale
from rdkernels.ops import OPS, core_iterations, row_linear
from tests.support.checking import (
    FLOAT_DTYPES,
    NAN,
    assert_close_to_reference,
    assert_same_bits,
)

OP = "core_iterations"
needs_native = pytest.mark.skipif(
    native.load_error() is not None, reason=f"no native kernels: {native.load_error()}"
)
layout = pytest.mark.parametrize("layout", LAYOUTS)
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES)
rotations = pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "half"])


def build(name, **changes):
    start, lengths, options = LAYOUTS[name]
    return make_block_case(start, lengths, **(options | changes))


def arguments_of(case, iterations=2):
    names = [a.name for a in OPS[OP].default._schema.arguments]
    return dict(zip(names, case.core_arguments(iterations), strict=True))


def run(case, provider, iterations):
    """On a fresh copy of the caches: state | embed afterwards, and the copy."""
    used = case.fresh()
    arguments = arguments_of(used, iterations)
    core_iterations(**arguments, backend=provider)
    return arguments["adapter_input"], used


def one_by_one(case, iterations):
    """The same by native row_linear and the native ops of a block."""
    used, width = case.fresh(), case.hidden.size(1)
    adapter_input = torch.cat((case.hidden, case.embed), dim=1)
    for _ in range(iterations):
        hidden = row_linear(adapter_input, *values_and_scale(case.adapter), backend="native")
        hidden = used.op_by_op(hidden, last_norm=False)
        adapter_input[case.live, :width] = hidden[case.live]
    return adapter_input, used


@layout
@pytest.mark.parametrize("iterations", [1, 3])
def test_values(layout, iterations, provider, device, seed):
    check_values(build(layout).to(device), provider, iterations)


def check_values(case, provider, iterations):
    """In fp32: in 16 bits one rounding less or more, compounded, is as large as many a fault.

    There the native provider must have every bit of the ops one by one, whose values are tested by
    themselves in every dtype.
    """
    out, used = run(case, provider, iterations)
    same, same_used = run(case, "eager", iterations)
    exact, exact_used = run(case.widened(), "eager", iterations)
    assert_close_to_reference(out, same, exact)
    for triple in zip(used.caches, same_used.caches, exact_used.caches, strict=True):
        assert_close_to_reference(*triple)


def mixed_case(part, dtype):
    plain = build("batch", dtype=dtype)
    return replace(plain, **{part: getattr(plain.int8(), part)})


@pytest.mark.parametrize("part", ["adapter", "weights"])
def test_the_adapter_or_the_blocks_may_be_int8(part, provider, device, seed):
    check_values(mixed_case(part, torch.float32).to(device), provider, 2)


def check_bits(case, iterations):
    out, used = run(case, "native", iterations)
    want, again = one_by_one(case, iterations)
    assert_same_bits(out, want)
    for got, expected in zip(used.caches, again.caches, strict=True):
        assert_same_bits(got, expected)


@needs_native
@layout
@dtypes
@rotations
@pytest.mark.parametrize("iterations", [0, 1, 3, 4])
def test_native_has_the_bits_of_the_ops_one_by_one(layout, iterations, interleaved, dtype, seed):
    check_bits(build(layout, dtype=dtype, interleaved=interleaved), iterations)


@needs_native
@dtypes
@pytest.mark.parametrize("part", ["adapter", "weights"])
def test_native_has_these_bits_where_one_part_is_int8(part, dtype, seed):
    check_bits(mixed_case(part, dtype), 2)


@pytest.mark.parametrize("layout", ["inactive", "padding", "inactive and padding"])
def test_rows_that_are_not_live_keep_everything(layout, provider, device, dtype, seed):
    """State, embedding and cells; and what their states hold reaches nobody."""
    case = build(layout, dtype=dtype).to(device)
    assert not case.live.all()
    want, _ = run(case, provider, 3)
    case.hidden[~case.live] = NAN
    out, used = run(case, provider, 3)
    width = case.hidden.size(1)
    assert_same_bits(out[~case.live, :width], case.hidden[~case.live])
    assert_same_bits(out[:, width:], case.embed)
    assert_same_bits(out[case.live], want[case.live])
    changed = (used.key_caches[0] != case.key_caches[0]) & ~used.key_caches[0].isnan()
    assert changed.flatten(2).any(2).sum() == case.live.sum()


def test_iterations_add_up(provider, device, dtype, seed):
    case = build("inactive", dtype=dtype).to(device)
    want, want_used = run(case, provider, 5)
    used = case.fresh()
    arguments = arguments_of(used, 2)
    core_iterations(**arguments, backend=provider)
    core_iterations(**(arguments | {"iterations": 3}), backend=provider)
    assert_same_bits(arguments["adapter_input"], want)
    for got, expected in zip(used.caches, want_used.caches, strict=True):
        assert_same_bits(got, expected)


def test_no_iterations_change_nothing(provider, device, dtype, seed):
    case = build("batch", dtype=dtype).to(device)
    out, used = run(case, provider, 0)
    assert_same_bits(out, torch.cat((case.hidden, case.embed), dim=1))
    for now, then in zip(used.caches, case.caches, strict=True):
        assert_same_bits(now, then)


def test_two_slots_of_one_pool(provider, device, dtype, seed):
    """Iterations that alternate between two page tables leave each other's cells alone."""
    case = build("one row", dtype=dtype).to(device)
    other = case.layout[1].clone()
    spare = int(other[0, 0]) ^ 1  # another page of the pool
    for cache in case.caches:
        cache[spare].normal_()
    other[0, 0] = spare
    used = case.fresh()
    before = [cache[spare].clone() for cache in used.caches]
    arguments = arguments_of(used, 1)
    core_iterations(**arguments, backend=provider)
    for cache, then in zip(used.caches, before, strict=True):
        assert_same_bits(cache[spare], then)
    core_iterations(**(arguments | {"page_table": other}), backend=provider)
    for cache, then in zip(used.caches, before, strict=True):
        changed = (cache[spare] != then).flatten(1).any(1)
        assert changed.nonzero().flatten().tolist() == [5]  # the row's position


def test_rows_with_gaps(provider, device, dtype, seed):
    case = build("inactive", dtype=dtype).to(device)
    want, _ = run(case, provider, 2)
    arguments = arguments_of(case.fresh(), 2)
    padded = want.new_full((len(want), want.size(1) + 3), NAN)
    arguments["adapter_input"] = padded[:, 1:-2].copy_(arguments["adapter_input"])
    core_iterations(**arguments, backend=provider)
    assert_same_bits(padded[:, 1:-2], want)
    assert padded[:, 0].isnan().all() and padded[:, -2:].isnan().all()


@needs_native
@dtypes
def test_threads_change_no_bit(dtype, seed):
    wide = {"width": 512, "heads": 8, "kv_heads": 8, "head_dim": 64, "mlp_width": 700}
    case = make_block_case([100, 3], [40, 9], dtype=dtype, inactive=0.2, **wide)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    one, _ = run(case, "native", 2)
    torch.set_num_threads(2)
    two, _ = run(case, "native", 2)
    torch.set_num_threads(before)
    assert_same_bits(one, two)


def test_gradients(seed):
    """By eager: with respect to the states, which are overwritten, and the embedding."""
    tiny = {"blocks": 1, "width": 6, "heads": 2, "kv_heads": 1, "head_dim": 4, "mlp_width": 5}
    case = make_block_case([2], [2], dtype=torch.float64, padding=1, **tiny)
    case.hidden[2:] = case.embed[2:] = 1.0

    def function(states, embed):
        adapter_input = torch.cat((states, embed), dim=1)
        arguments = arguments_of(case.fresh(), 2) | {"adapter_input": adapter_input}
        core_iterations(**arguments)
        return adapter_input

    inputs = (case.hidden.requires_grad_(), case.embed.requires_grad_())
    assert torch.autograd.gradcheck(function, inputs, atol=1e-6, rtol=1e-4)


# Case "batch": 15 rows, D = 48.
BAD_ARGUMENTS = {
    "rank": ("adapter_input", torch.ones(96), r".*\[\*, .*\].*, got float32\[96\]"),
    "width": ("adapter_input", torch.ones(15, 95), r"float32\[\*, 96\].*, got float32\[15, 95\]"),
    "adapter": ("adapter", torch.ones(48, 95), r"float32\[48, 96\].*, got float32\[48, 95\]"),
    "half": ("adapter", torch.ones(48, 96).half(), r"float32\[.*\] on .*, got float16\[48, 96\]"),
    "scale": (
        "adapter_scale",
        torch.ones(48),
        r"None for a weight that is not int8, got float32\[48\] on",
    ),
    "iterations": ("iterations", -1, "at least 0, got -1"),
    "weights": ("weights", [], "13 tensors for each of at least one block, got 0 tensors"),
    "caches": ("key_caches", [], "2 tensors, one per block, got 0 tensors"),
    "start": ("start", torch.zeros(3), r"int32\[\*\] on .*, got float32\[3\]"),
    "active": ("active", torch.ones(15), r"bool\[15\] on .*, got float32\[15\]"),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name, provider, device, seed):
    argument, value, message = BAD_ARGUMENTS[name]
    arguments = arguments_of(build("batch").to(device))
    core_iterations(**arguments, backend=provider)
    arguments[argument] = value
    with pytest.raises(ArgumentError, match=rf"^{OP}: {argument}: expected {message}"):
        core_iterations(**arguments, backend=provider)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("adapter_scale", None, "a scale for an int8 weight, got None"),
        ("adapter_scale", torch.ones(47), r"float32\[48\] on .*, got float32\[47\] on"),
        ("adapter_scale", torch.ones(48).half(), r"float32\[48\] on .*, got float16\[48\] on"),
        ("adapter", torch.ones(48, 95).char(), r"int8\[48, 96\].*, got int8\[48, 95\] on"),
    ],
)
def test_bad_int8_adapter(argument, value, message, provider, device, seed):
    arguments = arguments_of(build("int8").to(device))
    core_iterations(**arguments, backend=provider)
    arguments[argument] = value
    with pytest.raises(ArgumentError, match=rf"^{OP}: {argument}: expected {message}"):
        core_iterations(**arguments, backend=provider)


@needs_native
def test_native_refuses_a_wrong_layout_before_it_writes(seed):
    case = build("batch").fresh()
    arguments, used = arguments_of(case), case.fresh()
    before = arguments["adapter_input"].clone()
    arguments["start"] = arguments["start"] + 10**6
    with pytest.raises(ArgumentError, match=rf"^{OP}: start: expected positions within"):
        core_iterations(**arguments, backend="native")
    assert_same_bits(arguments["adapter_input"], before)
    for now, then in zip(case.caches, used.caches, strict=True):
        assert_same_bits(now, then)


def test_bad_dtype(seed):
    arguments = arguments_of(build("batch"))
    arguments["adapter_input"] = arguments["adapter_input"].int()
    with pytest.raises(ArgumentError, match=rf"^{OP}: adapter_input: expected float32\|.*int32"):
        core_iterations(**arguments)
