"""``carry_rows``: every row is copied from where it says, drawn, or zero."""

from functools import partial

import pytest
import torch

from rdkernels.ops import OPS, advance_wavefront, carry_rows, truncated_normal
from tests.support.checking import (
    INF,
    NAN,
    assert_refused,
    assert_same_bits,
    gradients_match,
    layouts,
)
from tests.support.philox_reference import random_keys
from tests.support.wavefront_case import pack, sequence

OP = "carry_rows"
GARBAGE = 2**31 - 1  # a source that padding rows may name


def draw(num_rows, width, capacity, count, dtype=torch.float32):
    """state, embed, source_row, row_keys, cu_rows with ``count`` of ``capacity`` rows in use."""
    state, embed = torch.randn(2, num_rows, width).to(dtype).unbind()
    most = max(num_rows, 1)
    source = torch.randint(-most, most, (capacity,), dtype=torch.int32)
    source[count:] = GARBAGE
    bounds = torch.tensor([0, count // 2, count], dtype=torch.int32)
    return state, embed, source, random_keys(capacity), bounds


def wanted(tensors, provider, seed, std, continuous):
    """Row by row; fresh states are those of the op ``truncated_normal``."""
    state, embed, source, keys, bounds = tensors
    shape = (len(source), state.size(1))
    states, embeds = state.new_zeros(shape), embed.new_zeros(shape)
    for i in range(min(len(source), int(bounds[-1]))):
        at = int(source[i])
        if at >= 0:
            states[i], embeds[i] = state[at], embed[at]
        elif continuous:
            states[i] = state[-1 - at]
        elif std > 0.0:
            key = torch.tensor([[keys[i, 0], keys[i, 1], 0]], dtype=torch.int32)
            options = {"dtype": state.dtype, "backend": provider}
            key = key.to(state.device)
            states[i] = truncated_normal(key, state.size(1), std, seed, **options)[0]
    return states, embeds


def check(tensors, provider, device, seed=5, std=0.4, continuous=False):
    tensors = tuple(t.to(device) for t in tensors)
    before = [t.clone() for t in tensors]
    options = {"seed": seed, "std": std, "continuous": continuous}
    got = carry_rows(*tensors, **options, backend=provider)
    for out, want in zip(got, wanted(before, provider, **options), strict=True):
        assert_same_bits(out, want)
    for mine, theirs in zip(tensors, before, strict=True):
        assert_same_bits(mine, theirs)
    return got


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize(
    ("num_rows", "width", "capacity", "count"),
    [(1, 1, 1, 1), (5, 7, 9, 6), (4, 64, 8, 8), (6, 130, 5, 0), (3, 0, 4, 2), (3, 8, 0, 0)],
)
def test_values(num_rows, width, capacity, count, continuous, provider, device, dtype, seed):
    tensors = draw(num_rows, width, capacity, count, dtype)
    state, embed = check(tensors, provider, device, seed, continuous=continuous)
    assert state.shape == embed.shape == (capacity, width)


def test_copies_are_exact(provider, device, dtype):
    """Whatever the bits: NaN, infinities, zeros of either sign."""
    state, embed, _, keys, bounds = draw(3, 6, 4, 4, dtype)
    state[1] = torch.tensor([NAN, INF, -INF, -0.0, 0.0, 1.0])
    embed[2] = state[1]
    source = torch.tensor([1, 2, -2, 0], dtype=torch.int32)
    check((state, embed, source, keys, bounds), provider, device, continuous=True)


def test_rows_that_are_not_named_do_not_matter(provider, device, dtype):
    """A NaN in them reaches nobody, and fresh rows look at no other row."""
    state, embed, _, keys, bounds = draw(4, 33, 5, 5, dtype)
    state[[0, 2]], embed[[0, 2]] = NAN, NAN
    source = torch.tensor([1, 3, -1, -3, 3], dtype=torch.int32)
    for out in check((state, embed, source, keys, bounds), provider, device):
        assert not out.isnan().any()


def test_zero_deviation_gives_zeros(provider, device, dtype):
    state, embed, source, keys, bounds = draw(3, 40, 4, 3, dtype)
    source[:] = -1
    state, _ = check((state, embed, source, keys, bounds), provider, device, std=0.0)
    assert_same_bits(state, torch.zeros_like(state))


def test_depth_is_no_part_of_the_key(provider, device):
    state, embed, _, keys, bounds = draw(2, 16, 4, 4)
    source = torch.full((4,), -1, dtype=torch.int32)
    keys[:, :2] = torch.tensor([3, 9])
    state, _ = check((state, embed, source, keys, bounds), provider, device)
    assert (state == state[0]).all() and state[0].unique().numel() > 10


def test_more_rows_than_there_is_room_for(provider, device):
    state, embed, source, keys, _ = draw(3, 8, 4, 4)
    check((state, embed, source, keys, torch.tensor([0, 9]).int()), provider, device)


def test_nothing_to_carry(provider, device, dtype):
    """No rows before, as at the start of a generation: all are fresh, and no row need be there."""
    state, embed, source, keys, bounds = draw(0, 12, 3, 2, dtype)
    source[:2] = torch.tensor([-1, -7])
    state, _ = check((state, embed, source, keys, bounds), provider, device)
    assert (state[:2] != 0).all() and (state[2] == 0).all()


@pytest.mark.parametrize("continuous", [False, True])
def test_layouts(continuous, provider, device, dtype):
    state, embed, source, keys, bounds = draw(5, 24, 7, 6, dtype)
    wide = torch.full((7, 5), GARBAGE, dtype=torch.int32)
    wide[:, 1:4] = keys
    for states, embeds in zip(layouts(state), reversed(list(layouts(embed))), strict=True):
        tensors = (states, embeds, source, wide[:, 1:4], bounds)
        check(tensors, provider, device, continuous=continuous)
    spaced = torch.full((14,), GARBAGE, dtype=torch.int32)
    spaced[::2] = source
    check((state, embed, spaced[::2], keys, bounds), provider, device, continuous=continuous)


def test_outputs_are_views(provider, device, dtype):
    """Halves of one wider buffer; what is around them stays."""
    tensors = tuple(t.to(device) for t in draw(4, 20, 6, 5, dtype))
    whole = torch.full((6, 50), 77.0, dtype=dtype, device=device)
    outputs = {"next_state": whole[:, 1:21], "next_embed": whole[:, 23:43]}
    op = OPS[OP]
    function = op.eager_out if provider == "eager" else op.out
    function(*tensors, 5, 0.4, False, **outputs)
    backend = "eager" if provider == "eager" else "native"
    for out, want in zip(outputs.values(), wanted(tensors, backend, 5, 0.4, False), strict=True):
        assert_same_bits(out.contiguous(), want)
    assert (whole[:, [0, 21, 22, *range(43, 50)]] == 77.0).all()


def test_after_advance_wavefront(provider, device):
    """Of row states that hold their position, every next row finds its own, or is fresh."""
    sequences = [
        sequence([1, 5, 6], [5, 6, 7], [True, False, True]),
        sequence([1, 5], [4, 6], [True, False], start=7),
    ]
    arguments = pack(sequences, device=device)
    for restart, fresh_rows in ((False, [2, 3, 5, 6]), (True, [2, 3, 4, 5])):
        copies = {name: t.clone() for name, t in arguments.items()}
        bounds, source, _, _, keys = advance_wavefront(
            **copies, headway=2, restart=restart, backend=provider
        )
        position = torch.tensor([2.0, 3.0, 4.0, 7.0, 8.0], device=device)
        state = position.unsqueeze(1).repeat(1, 8)
        options = {"seed": 1, "std": 1.0, "backend": provider}
        next_state, next_embed = carry_rows(state, state, source, keys, bounds, **options)
        count = int(bounds[-1])
        for i in range(count):
            if i in fresh_rows:
                assert (next_embed[i] == 0).all() and next_state[i].abs().max() <= 3.0
            else:
                assert (next_embed[i] == keys[i, 1]).all() and (next_state[i] == keys[i, 1]).all()
        assert (next_state[count:] == 0).all() and (next_embed[count:] == 0).all()
        next_state, _ = carry_rows(
            state, state, source, keys, bounds, seed=1, std=1.0, continuous=True, backend=provider
        )
        # Restarted, the second sequence goes on from its committed row at 7, not from its front.
        fronts = [4.0, 4.0, 7.0, 7.0] if restart else [4.0, 4.0, 8.0, 8.0]
        assert next_state[fresh_rows, 0].tolist() == fronts


def test_gradients(seed):
    torch.manual_seed(seed)
    state, embed, _, keys, bounds = draw(3, 4, 5, 4, torch.float64)
    source = torch.tensor([2, -1, 0, 2, GARBAGE], dtype=torch.int32)
    state.requires_grad_(), embed.requires_grad_()
    for continuous in (False, True):
        options = {"seed": 1, "std": 1.0, "continuous": continuous}
        assert gradients_match(
            lambda s, e, options=options: carry_rows(s, e, source, keys, bounds, **options),
            state,
            embed,
        )


def valid(device="cpu"):
    names = ("state", "embed", "source_row", "row_keys", "cu_rows")
    tensors = (t.to(device) for t in draw(3, 4, 5, 5))
    return dict(zip(names, tensors, strict=True)) | {"seed": 1, "std": 1.0}


def zeros(*shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("embed", zeros(3, 5, dtype=torch.float32), r"float32\[3, 4\] on .*, got .*\[3, 5\]"),
        ("embed", zeros(3, 4, dtype=torch.float16), r"float32\[3, 4\] on .*, got float16"),
        ("source_row", zeros(5, 1), r"int32\[\*\] on .*, got int32\[5, 1\]"),
        ("source_row", zeros(5, dtype=torch.int64), r"int32\[\*\] on .*, got int64\[5\]"),
        ("row_keys", zeros(4, 3), r"int32\[5, 3\] on .*, got int32\[4, 3\]"),
        ("row_keys", zeros(5, 3, dtype=torch.int64), r"int32\[5, 3\] on .*, got int64"),
        ("cu_rows", zeros(1, 2), r"int32\[\*\] on .*, got int32\[1, 2\]"),
        ("cu_rows", zeros(2, dtype=torch.int64), r"int32\[\*\] on .*, got int64"),
        ("cu_rows", zeros(0), r"at least one bound, got \[0\]"),
        ("std", -1.0, "a finite deviation >= 0, got -1"),
        ("std", INF, "a finite deviation >= 0, got inf"),
        ("std", NAN, "a finite deviation >= 0, got nan"),
    ],
)
def test_bad_input(argument, value, message, provider, device):
    value = value.to(device) if isinstance(value, torch.Tensor) else value
    function = partial(carry_rows, backend=provider)
    assert_refused(OP, function, valid(device), argument, value, message)


def test_bad_state():
    assert_refused(OP, carry_rows, valid(), "state", torch.zeros(3), r".*\[\*, \*\].*, got .*\[3\]")


@pytest.mark.parametrize("argument", ["embed", "source_row", "row_keys", "cu_rows"])
def test_bad_device(argument):
    function = partial(carry_rows, backend="eager")
    value = valid()[argument].to("meta")
    assert_refused(OP, function, valid(), argument, value, ".* on cpu, got .* on meta")


def test_rows_that_do_not_exist_are_refused(provider, device):
    """On the CPU, where they can be looked at."""
    if device != "cpu" or provider == "triton":
        pytest.skip("not read by the host")
    function = partial(carry_rows, continuous=True, backend=provider)
    for source in (3, -4):
        arguments = valid() | {"source_row": torch.tensor([0, 1, source, -1, 2]).int()}
        with pytest.raises((IndexError, ValueError)):
            function(**arguments)
