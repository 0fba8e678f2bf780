"""``recurrent_attention`` against torch SDPA on contiguous K/V; see ``cases.attention``."""

import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from cases.attention import TENSORS, make_case, rotary_table
from rdkernels.errors import ArgumentError
from rdkernels.ops import recurrent_attention
from tests.support.attention_case import check_case
from tests.support.checking import (
    NAN,
    assert_refused,
    assert_same_bits,
    gradients_match,
    layouts,
)

OP = "recurrent_attention"
HEADS = ((4, 4), (4, 2), (6, 1))


@pytest.mark.parametrize("interleaved", [True, False], ids=["interleaved", "half"])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("inactive", [0.0, 0.3])
def test_random_batches(inactive, heads, kv_heads, interleaved, provider, device, dtype, seed):
    draw = random.Random(seed)
    for bias in (False, True):
        batch = draw.randint(1, 6)
        case = make_case(
            [draw.choice([0, 1, draw.randint(2, 70)]) for _ in range(batch)],
            [draw.choice([0, 1, draw.randint(2, 40)]) for _ in range(batch)],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=draw.choice([16, 32, 64]),
            dtype=dtype,
            bias=bias,
            inactive=inactive,
            padding=draw.choice([0, 3]),
            interleaved=interleaved,
        )
        check_case(case, provider, device)


@pytest.mark.parametrize("length", [1, 2, 16, 17])
def test_every_offset_of_a_page_boundary(length, provider, device, dtype, seed):
    """A first row in every cell of a page, so that the last also ends in every cell."""
    check_case(make_case(list(range(18)), [length] * 18, dtype=dtype), provider, device)


@pytest.mark.parametrize("start", [0, 15, 16, 31, 63, 64, 65, 200])
def test_one_row_far_along(start, provider, device, dtype, seed):
    check_case(make_case([start], [1], dtype=dtype), provider, device)


def test_long_context(provider, device, dtype, seed):
    check_case(make_case([1500, 0, 700], [3, 90, 1], heads=2, dtype=dtype), provider, device)


@pytest.mark.parametrize("head_dim", [2, 8, 64, 96, 128])
def test_head_dims(head_dim, provider, device, dtype, seed):
    case = make_case([5, 0], [9, 4], heads=2, kv_heads=1, head_dim=head_dim, dtype=dtype)
    check_case(case, provider, device)


@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_page_sizes(page_size, provider, device, dtype, seed):
    check_case(make_case([63, 0], [3, 65], page_size=page_size, dtype=dtype), provider, device)


@pytest.mark.parametrize("scale", [0.0, 0.05, 3.0])
def test_scale(scale, provider, device, dtype, seed):
    case = make_case([20, 0], [3, 7], dtype=dtype)
    check_case(replace(case, scale=scale), provider, device)


def test_first_token_gets_its_own_value(provider, device, dtype, seed):
    case = make_case([0], [1], heads=4, kv_heads=2, head_dim=16, dtype=dtype)
    out = check_case(case, provider, device).view(4, 16)
    value = case.qkv.view(8, 16)[6:]
    assert_same_bits(out, value.repeat_interleave(2, 0))


def test_large_scores_do_not_overflow(provider, device, dtype, seed):
    case = make_case([17, 0], [5, 5], dtype=dtype, bias=False)
    kv = 2 * 32
    case.qkv[:, :-kv] *= 40
    case.key_cache.mul_(40)
    # One rounding of a score of 40 * 40 * 4 in fp32 is 4e-4, and a weight moves as much.
    check_case(case, provider, device, scale=40.0)


# Rows that are not there.


@pytest.mark.parametrize(
    ("start", "lengths"),
    [([], []), ([0], [0]), ([33, 0, 16], [0, 0, 0])],
    ids=["no sequences", "one without rows", "three without rows"],
)
@pytest.mark.parametrize("padding", [0, 4])
def test_no_rows(start, lengths, padding, provider, device, dtype):
    case = make_case(start, lengths, dtype=dtype, padding=padding)
    out = check_case(case, provider, device)
    assert out.shape == (padding, 4 * 32) and (out == 0).all()


def test_sequences_without_rows_between_others(provider, device, dtype, seed):
    check_case(make_case([0, 5, 9, 40, 2], [0, 3, 0, 2, 0], dtype=dtype), provider, device)


def test_inactive_rows(provider, device, dtype, seed):
    """Output zero, cells untouched, and the other rows attend to what those cells held."""
    case = make_case([14, 0], [6, 4], dtype=dtype, inactive=0.4)
    case.active.copy_(torch.tensor([1, 0, 1, 1, 0, 1, 0, 0, 0, 0]))
    old = make_case([14, 0], [6, 4], dtype=dtype)  # finite history for every row
    case.key_cache.copy_(torch.nan_to_num(old.key_cache, nan=0.5))
    case.value_cache.copy_(torch.nan_to_num(old.value_cache, nan=-0.5))
    out = check_case(case, provider, device)
    assert (out[~case.active] == 0).all()
    before = out[5]
    page, cell = case.cells(0, torch.tensor(15))  # of the inactive row 1
    case.value_cache[page, cell] += 8
    changed = check_case(case, provider, device)
    assert_same_bits(changed[0], out[0])
    assert (changed[5] != before).any(), "a later row attends to the old cell"


def test_all_rows_inactive(provider, device, dtype, seed):
    case = make_case([3, 0], [2, 4], dtype=dtype, inactive=1.0, padding=1)
    assert (check_case(case, provider, device) == 0).all()


def test_active_padding_is_not_computed(provider, device, dtype, seed):
    """Rows past ``cu_rows[B]`` are nobody's, even where ``active`` says true."""
    case = make_case([3, 0], [2, 4], dtype=dtype, padding=5)
    case = replace(case, active=torch.ones(11, dtype=torch.bool))
    assert (check_case(case, provider, device)[6:] == 0).all()


# Independence.


def test_launching_again_overwrites_the_same_cells(provider, device, dtype, seed):
    """A later iteration leaves no trace of the earlier one."""
    case = make_case([13, 2, 0], [5, 1, 20], dtype=dtype).to(device)
    shared, fresh = case.fresh(), case.fresh()
    earlier = torch.randn_like(case.qkv)
    replace(shared, qkv=earlier).run(provider)
    assert_same_bits(shared.run(provider), fresh.run(provider))
    assert_same_bits(shared.key_cache, fresh.key_cache)
    assert_same_bits(shared.value_cache, fresh.value_cache)


def test_repeats_are_bit_identical(provider, device, dtype, seed):
    case = make_case([130, 2, 0], [5, 1, 40], dtype=dtype).to(device)
    assert_same_bits(case.fresh().run(provider), case.fresh().run(provider))


def permuted(case, order):
    rows = torch.cat([torch.arange(len(case.qkv))[case.sequence_rows(b)] for b in order])
    lengths = [case.lengths[b] for b in order]
    active = None if case.active is None else case.active[rows]
    changes = {
        "qkv": case.qkv[rows],
        "active": active,
        "page_table": case.page_table[order],
        "cu_rows": torch.tensor([0, *lengths]).cumsum(0).int(),
        "start": case.start[order],
        "lengths": lengths,
    }
    return replace(case, **changes), rows


@pytest.mark.parametrize("inactive", [0.0, 0.3])
def test_order_of_sequences_does_not_matter(inactive, provider, device, dtype, seed):
    case = make_case([40, 0, 7, 16], [3, 20, 0, 2], dtype=dtype, inactive=inactive)
    other, rows = permuted(case, [2, 3, 1, 0])
    a, b = case.to(device).fresh(), other.to(device).fresh()
    assert_same_bits(a.run(provider)[rows], b.run(provider))
    assert_same_bits(a.key_cache, b.key_cache)
    assert_same_bits(a.value_cache, b.value_cache)


def test_other_sequences_do_not_matter(provider, device, dtype, seed):
    """What each sequence gets in a batch is what it gets alone, NaN in its neighbour or not."""
    case = make_case([40, 0, 16], [3, 20, 2], dtype=dtype)
    case.qkv[case.sequence_rows(1)] = NAN
    together = case.to(device).fresh().run(provider).cpu()
    assert together[case.sequence_rows(1)].isnan().all()
    for b in (0, 2):
        alone, rows = permuted(case, [b])
        check_case(alone, provider, device)
        out = alone.to(device).fresh().run(provider).cpu()
        assert (out - together[rows]).abs().max() <= 1e-5 * (1 if dtype == torch.float32 else 1e3)


def test_a_row_is_not_reached_by_later_ones(provider, device, dtype, seed):
    case = make_case([10], [12], dtype=dtype)
    out = case.to(device).fresh().run(provider)
    case.qkv[7:] = torch.randn_like(case.qkv[7:])
    assert_same_bits(case.to(device).fresh().run(provider)[:7], out[:7])


def test_rows_of_one_sequence_at_different_slots(provider, device, dtype, seed):
    """The lossless wavefront: rows as sequences of one, at any positions, each with its pages."""
    check_case(make_case([5, 6, 7, 8, 6], [1] * 5, dtype=dtype), provider, device)


# Layouts.


def test_qkv_layouts(provider, device, dtype, seed):
    case = make_case([18, 0], [4, 3], dtype=dtype)
    for variant in layouts(case.qkv):
        check_case(replace(case, qkv=variant), provider, device)


def test_caches_inside_a_larger_pool(provider, device, dtype, seed):
    """A layer of a pool, and keys and values side by side per page: gaps and an offset."""
    case = make_case([18, 0], [4, 3], dtype=dtype).to(device)
    want = case.fresh()
    out = want.run(provider)
    pool = torch.full((case.key_cache.size(0), 3, *case.key_cache.shape[1:]), NAN, dtype=dtype)
    pool = pool.to(device)
    pool[:, 1], pool[:, 2] = case.key_cache, case.value_cache
    inside = replace(case, key_cache=pool[:, 1], value_cache=pool[:, 2])
    assert_same_bits(inside.run(provider), out)
    assert_same_bits(pool[:, 1], want.key_cache)
    assert_same_bits(pool[:, 2], want.value_cache)
    assert pool[:, 0].isnan().all()


def test_strided_page_table(provider, device, dtype, seed):
    case = make_case([18, 0, 40], [4, 3, 2], dtype=dtype)
    wide = torch.full((3, 2 * case.page_table.size(1)), -1, dtype=torch.int32)
    wide[:, : case.page_table.size(1)] = case.page_table
    check_case(replace(case, page_table=wide[:, : case.page_table.size(1)]), provider, device)


def test_inputs_are_not_changed(provider, device, dtype, seed):
    case = make_case([18, 0], [4, 3], dtype=dtype, inactive=0.3, padding=2).to(device).fresh()
    before = {name: getattr(case, name).clone() for name in TENSORS}
    case.run(provider)
    for name, copy in before.items():
        if "cache" not in name:
            assert_same_bits(getattr(case, name), copy)


# The operator.


@pytest.mark.parametrize("interleaved", [True, False])
def test_gradients(interleaved, seed):
    """Through q, k, v and the bias, the rows' own cache cells included."""
    case = make_case(
        [3, 0], [2, 3], heads=2, kv_heads=1, head_dim=4, dtype=torch.float64,
        interleaved=interleaved,
    )  # fmt: skip

    def function(qkv, qk_bias):
        return replace(case.fresh(), qkv=qkv, qk_bias=qk_bias).run(None)

    assert gradients_match(function, case.qkv.requires_grad_(), case.qk_bias.requires_grad_())


def valid(device):
    case = make_case([3, 0], [2, 1], heads=2, kv_heads=1, head_dim=4).to(device)
    return {name: getattr(case, name) for name in TENSORS} | {
        "active": torch.ones(3, dtype=torch.bool, device=device)
    }


def int32(*shape):
    return torch.zeros(*shape, dtype=torch.int32)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("qkv", torch.ones(16), r".*\[\*, \*\].*, got float32\[16\] on"),
        ("qkv", torch.ones(3, 15), r"second size \(heads \+ 2 \* 1\) \* 4, .*, got .*\[3, 15\]"),
        ("qkv", torch.ones(3, 8), r"second size .*, got .*\[3, 8\]"),
        ("qk_bias", torch.ones(3, 5), r"float32\[3, 4\] on .*, got float32\[3, 5\] on"),
        ("qk_bias", torch.ones(3, 4).half(), r"float32\[3, 4\] on .*, got float16\[3, 4\] on"),
        ("cos_sin", rotary_table(9, 8), r"float32\[\*, 4\] on .*, got float32\[9, 8\] on"),
        ("cos_sin", rotary_table(9, 4).half(), r"float32\[\*, 4\] on .*, got float16\[9, 4\] on"),
        (
            "key_cache",
            torch.ones(4, 16, 4),
            r"float32\[\*, \*, \*, \*\].*, got float32\[4, 16, 4\]",
        ),
        ("key_cache", torch.ones(4, 16, 1, 4).half(), r"float32\[.*, got float16\[4, 16, 1, 4\]"),
        (
            "value_cache",
            torch.ones(4, 16, 1, 2),
            r"float32\[.*, 16, 1, 4\].*, got .*\[4, 16, 1, 2\]",
        ),
        ("value_cache", torch.ones(5, 16, 1, 4).half(), r"float32\[.*, got float16\[5, 16, 1, 4\]"),
        ("page_table", int32(3, 2), r"int32\[2, \*\] on .*, got int32\[3, 2\] on"),
        ("page_table", int32(2, 2).long(), r"int32\[2, \*\] on .*, got int64\[2, 2\] on"),
        ("cu_rows", int32(2), r"int32\[3\] on .*, got int32\[2\] on"),
        ("cu_rows", int32(3).long(), r"int32\[3\] on .*, got int64\[3\] on"),
        ("start", int32(2, 1), r"int32\[\*\] on .*, got int32\[2, 1\] on"),
        ("start", int32(2).long(), r"int32\[\*\] on .*, got int64\[2\] on"),
        ("active", torch.ones(4).bool(), r"bool\[3\] on .*, got bool\[4\] on"),
        ("active", int32(3), r"bool\[3\] on .*, got int32\[3\] on"),
    ],
)
def test_bad_input(argument, value, message, provider, device):
    function = partial(recurrent_attention, backend=provider)
    assert_refused(OP, function, valid(device), argument, value.to(device), message)


def test_heads_must_be_a_multiple_of_kv_heads(provider, device):
    arguments = valid(device) | {"qk_bias": None}
    for name in ("key_cache", "value_cache"):
        arguments[name] = torch.zeros(5, 16, 2, 4, device=device)
    arguments["qkv"] = torch.zeros(3, (2 + 4) * 4, device=device)
    function = partial(recurrent_attention, backend=provider)
    message = r"second size \(heads \+ 2 \* 2\) \* 4, heads a multiple of 2, got .*\[3, 28\]"
    qkv = torch.zeros(3, (3 + 4) * 4, device=device)
    assert_refused(OP, function, arguments, "qkv", qkv, message)


@pytest.mark.parametrize(
    ("kv_heads", "head_dim", "expected"),
    [
        (1, 3, "an even head_dim, got 3"),
        (1, 0, "an even head_dim, got 0"),
        (0, 4, r"at least one KV head, got float32\[5, 16, 0, 4\]"),
    ],
)
def test_impossible_caches(kv_heads, head_dim, expected, provider, device):
    cache = torch.zeros(5, 16, kv_heads, head_dim, device=device)
    arguments = valid(device) | {"key_cache": cache, "value_cache": cache, "qk_bias": None}
    arguments["qkv"] = torch.zeros(3, 12, device=device)
    with pytest.raises(ArgumentError, match=rf"^{OP}: key_cache: expected {expected}"):
        recurrent_attention(**arguments, backend=provider)


def test_bad_dtype():
    qkv = torch.ones(3, 16, dtype=torch.int32)
    message = r"float32\|.*\[\*, \*\], got int32\[3, 16\]"
    assert_refused(OP, recurrent_attention, valid("cpu"), "qkv", qkv, message)


@pytest.mark.parametrize("argument", TENSORS[1:])
def test_bad_device(argument):
    function = partial(recurrent_attention, backend="eager")
    value = valid("cpu")[argument].to("meta")
    assert_refused(OP, function, valid("cpu"), argument, value, ".* on cpu, got .* on meta")
