"""``inject_state``: momentum, keyed noise and concatenation, row by row."""

from functools import partial

import pytest
import torch

from rdkernels.ops import inject_state
from tests.support import philox_reference
from tests.support.checking import (
    NAN,
    assert_close_to_reference,
    assert_refused,
    assert_same_bits,
    gradients_match,
    layouts,
)
from tests.support.philox_reference import random_keys

OP = "inject_state"


def reference(state, embed, previous, depth, momentum, weight, keys, seed, std, preserving, wide):
    """The equations of the docstring for every row by itself, in the dtype ``wide``."""
    states, embeds = [], []
    for i in range(state.size(0)):
        s, e = state[i].to(wide), embed[i].to(wide)
        if previous is not None and depth[i] > 0:
            e = momentum * previous[i].to(wide) + (1 - momentum) * e
        if weight is not None and weight[i] > 0:
            z = philox_reference.truncated_normal(
                keys[i : i + 1], state.size(1), std, seed, philox_reference.STATE_NOISE
            )
            w = weight[i].item()
            kept = max(1 - w * w, 0.0) ** 0.5 if preserving else 1 - w
            s = kept * s + w * z[0].to(wide)
        states.append(s)
        embeds.append(e)
    empty = state.new_empty(0, state.size(1), dtype=wide)
    s, e = (torch.stack(rows) if rows else empty for rows in (states, embeds))
    return torch.cat((s, e), dim=1), e


def check(provider, device, tensors, momentum=0.0, seed=0, std=1.0, preserving=False):
    state, embed, previous, depth, weight, keys = tensors
    on_device = [None if t is None else t.to(device) for t in tensors]
    got = inject_state(
        *on_device[:4], momentum, *on_device[4:], seed, std, preserving, backend=provider
    )  # fmt: skip
    arguments = (state, embed, previous, depth, momentum, weight, keys, seed, std, preserving)
    same = reference(*arguments, torch.float32)
    exact = reference(*arguments, torch.float64)
    for out, plain, want in zip(got, same, exact, strict=True):
        assert_close_to_reference(out.cpu(), plain.to(state.dtype), want)
    assert_same_bits(got[0][:, state.size(1) :], got[1])
    return got


def draw(rows, width, dtype=torch.float32):
    """state, embed, previous_embed, depth, noise_weight, row_keys; fresh and noiseless rows too."""
    state, embed, previous = torch.randn(3, rows, width).to(dtype).unbind()
    depth = torch.randint(0, 3, (rows,), dtype=torch.int32)
    weight = torch.rand(rows) * torch.randint(0, 2, (rows,))
    return [state, embed, previous, depth, weight, random_keys(rows)]


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.9])
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (9, 7), (6, 64), (3, 130)])
def test_values(rows, width, momentum, provider, device, dtype, seed):
    state, embed, previous, depth, weight, keys = draw(rows, width, dtype)
    nothing = [None] * 2
    check(provider, device, [state, embed, *nothing, *nothing])
    check(provider, device, [state, embed, previous, depth, *nothing], momentum)
    check(provider, device, [state, embed, *nothing, weight, keys], 0.0, seed, 0.5)
    out, mixed = check(
        provider, device, [state, embed, previous, depth, weight, keys], momentum, seed, 0.5
    )
    assert out.shape == (rows, 2 * width) and mixed.shape == (rows, width)
    check(
        provider, device, [state, embed, previous, depth, weight, keys], momentum, seed, 0.5, True
    )


def test_plain_concatenation_is_exact(provider, device, dtype, seed):
    state, embed = torch.randn(2, 5, 12, device=device).to(dtype).unbind()
    state[2, 3] = NAN
    out, mixed = inject_state(state, embed, backend=provider)
    assert_same_bits(out, torch.cat((state, embed), 1))
    assert_same_bits(mixed, embed)
    assert mixed.data_ptr() != embed.data_ptr(), "kept as previous_embed: must not alias"


def test_fresh_row_is_not_scaled_by_momentum(provider, device, dtype, seed):
    """A row at depth 0 has no previous embedding: whatever memory holds there is not read."""
    state, embed, previous, depth, _, _ = (t.to(device) for t in draw(4, 16, dtype))
    depth.copy_(torch.tensor([0, 3, 0, 1]))
    previous[depth == 0] = NAN
    _, mixed = inject_state(state, embed, previous, depth, 0.5, backend=provider)
    assert_same_bits(mixed[depth == 0], embed[depth == 0])
    want = (0.5 * previous[depth > 0].float() + 0.5 * embed[depth > 0].float()).to(dtype)
    assert_same_bits(mixed[depth > 0], want)


def test_momentum_weighs_the_previous_embedding(provider, device):
    one = torch.ones(1, 1, device=device)
    depth = torch.ones(1, dtype=torch.int32, device=device)
    _, mixed = inject_state(one, 0 * one, one, depth, 0.25, backend=provider)
    assert mixed.item() == 0.25


def test_rows_without_noise_are_bit_identical(provider, device, dtype, seed):
    state, embed, _, _, _, keys = (t.to(device) for t in draw(5, 16, dtype))
    state[0, 0], state[2, 1], state[2, 2] = NAN, -0.0, torch.finfo(dtype).smallest_normal / 2
    weight = torch.tensor([0.0, 0.3, 0.0, 1.0, -0.0], device=device)
    out, _ = inject_state(
        state, embed, noise_weight=weight, row_keys=keys, seed=seed, backend=provider
    )
    quiet = weight == 0
    assert_same_bits(out[quiet, :16], state[quiet])
    assert (out[~quiet, :16] != state[~quiet]).float().mean() > 0.9


def test_full_noise_replaces_the_state(provider, device, seed):
    keys = random_keys(3)
    weight = torch.ones(3, device=device)
    state = torch.randn(3, 10, device=device)
    out, _ = inject_state(
        state, state, noise_weight=weight, row_keys=keys.to(device), seed=seed, noise_std=2.0,
        backend=provider,
    )  # fmt: skip
    want = philox_reference.truncated_normal(keys, 10, 2.0, seed, philox_reference.STATE_NOISE)
    assert torch.allclose(out[:, :10].double().cpu(), want, atol=1e-4)


def test_variance_preserving_noise(provider, device, dtype, seed):
    """By hand, with weights near 1, where ``1 - w**2`` has few digits, and beyond it."""
    weight = torch.tensor([0.6, 0.8, 0.999, 1 - 2**-24, 1.0, 1.5])
    kept = torch.tensor([0.8, 0.6, 0.0447101778, 3.45267e-4, 0.0, 0.0])
    keys = random_keys(6)
    state, embed, *_ = draw(6, 40, dtype)
    tensors = (state, embed, weight, keys)
    state_, embed_, weight_, keys_ = (t.to(device) for t in tensors)
    out, _ = inject_state(
        state_, embed_, noise_weight=weight_, row_keys=keys_, seed=seed, noise_std=1.0,
        variance_preserving=True, backend=provider,
    )  # fmt: skip
    z = philox_reference.truncated_normal(keys, 40, 1.0, seed, philox_reference.STATE_NOISE)
    exact = kept[:, None].double() * state.double() + weight[:, None].double() * z
    same = (kept[:, None] * state.float() + weight[:, None] * z.float()).to(dtype)
    assert_close_to_reference(out[:, :40].cpu(), same, exact)


def test_variance_preserving_noise_keeps_the_size(provider, device, seed):
    state = torch.randn(4, 4096, device=device)
    weight = torch.tensor([0.1, 0.5, 0.8, 1.0], device=device)
    keys = random_keys(4, device)
    options = {"noise_weight": weight, "row_keys": keys, "seed": seed, "backend": provider}
    out, _ = inject_state(state, state, variance_preserving=True, **options)
    assert out[:, :4096].std(dim=1).cpu() == pytest.approx(1.0, abs=0.06)
    shrunk, _ = inject_state(state, state, **options)
    assert shrunk[1, :4096].std() < 0.8


def test_noise_changes_with_the_step(provider, device, seed):
    keys = random_keys(1, device).expand(2, 3).clone()
    keys[1, 2] += 1
    zeros, ones = torch.zeros(2, 8, device=device), torch.ones(2, device=device)
    out, _ = inject_state(
        zeros, zeros, noise_weight=ones, row_keys=keys, seed=seed, backend=provider
    )
    assert (out[0, :8] != out[1, :8]).all()


def test_broken_rows_stay_alone(provider, device, dtype, seed):
    tensors = [t.to(device) for t in draw(6, 16, dtype)]
    tensors[3].fill_(2)
    state, embed, previous, depth, weight, keys = tensors
    weight.fill_(0.5)
    arguments = (depth, 0.1, weight, keys, seed, 1.0)
    clean = inject_state(state, embed, previous, *arguments, backend=provider)
    state[1], embed[2], previous[3] = NAN, float("inf"), NAN
    broken = inject_state(state, embed, previous, *arguments, backend=provider)
    for before, after in zip(clean, broken, strict=True):
        assert_same_bits(after[[0, 4, 5]], before[[0, 4, 5]])
    assert broken[0][1, :16].isnan().all() and broken[0][1, 16:].isfinite().all()
    assert broken[1][2].isinf().all() and broken[1][3].isnan().all()


def test_batch_does_not_matter(provider, device, dtype, seed):
    tensors = [t.to(device) for t in draw(10, 24, dtype)]

    def run(rows):
        state, embed, previous, depth, weight, keys = (t[rows] for t in tensors)
        return inject_state(
            state, embed, previous, depth, 0.1, weight, keys, seed, backend=provider
        )

    together, order = run(slice(None)), torch.randperm(10)
    for whole, shuffled in zip(together, run(order), strict=True):
        assert_same_bits(shuffled, whole[order])
    for row in range(10):
        assert_same_bits(run([row])[0], together[0][[row]])


def test_layouts(provider, device, dtype, seed):
    state, embed, previous, depth, weight, keys = (t.to(device) for t in draw(6, 40, dtype))

    def run(state, embed, previous, keys=keys):
        return inject_state(
            state, embed, previous, depth, 0.1, weight, keys, seed, backend=provider
        )

    want = run(state, embed, previous)
    for a, b, c in zip(layouts(state), layouts(embed), layouts(previous), strict=True):
        for got in (run(a, embed, previous), run(state, b, previous), run(state, embed, c)):
            assert_same_bits(got[0], want[0])
            assert_same_bits(got[1], want[1])
    spaced = torch.stack((keys, keys + 1), dim=2)[..., 0]
    assert_same_bits(run(state, embed, previous, spaced)[0], want[0])


def test_inputs_are_not_changed(provider, device, seed):
    tensors = [t.to(device) for t in draw(4, 8)]
    before = [t.clone() for t in tensors]
    state, embed, previous, depth, weight, keys = tensors
    inject_state(state, embed, previous, depth, 0.1, weight, keys, seed, backend=provider)
    for tensor, copy in zip(tensors, before, strict=True):
        assert_same_bits(tensor, copy)


def test_gradients(seed):
    state, embed, previous, depth, weight, keys = draw(3, 4, torch.float64)

    def function(state, embed, previous):
        return inject_state(state, embed, previous, depth, 0.2, weight, keys, seed)

    assert gradients_match(function, *(t.requires_grad_() for t in (state, embed, previous)))


def valid(device):
    x = torch.ones(2, 4, device=device)
    counts = torch.ones(2, dtype=torch.int32, device=device)
    return {
        "state": x,
        "embed": x,
        "previous_embed": x,
        "depth": counts,
        "momentum": 0.1,
        "noise_weight": torch.ones(2, device=device),
        "row_keys": torch.ones(2, 3, dtype=torch.int32, device=device),
    }


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("state", torch.ones(()), r".*\[\*, \*\].*, got float32\[\] on"),
        ("state", torch.ones(4), r".*\[\*, \*\].*, got float32\[4\] on"),
        ("embed", torch.ones(2, 3), r"float32\[2, 4\] on .*, got float32\[2, 3\] on"),
        ("embed", torch.ones(2, 4).half(), r"float32\[2, 4\] on .*, got float16\[2, 4\] on"),
        ("previous_embed", torch.ones(3, 4), r"float32\[2, 4\] on .*, got float32\[3, 4\] on"),
        ("previous_embed", torch.ones(2, 4).half(), r"float32\[2, 4\] on .*, got float16"),
        ("depth", None, "a tensor beside previous_embed, got None"),
        ("depth", torch.ones(3).int(), r"int32\[2\] on .*, got int32\[3\] on"),
        ("depth", torch.ones(2).long(), r"int32\[2\] on .*, got int64\[2\] on"),
        ("momentum", 1.0, "0 <= momentum < 1, got 1"),
        ("momentum", -0.1, "0 <= momentum < 1, got -0.1"),
        ("momentum", NAN, "0 <= momentum < 1, got nan"),
        ("noise_weight", torch.ones(3), r"float32\[2\] on .*, got float32\[3\] on"),
        ("noise_weight", torch.ones(2).half(), r"float32\[2\] on .*, got float16\[2\] on"),
        ("row_keys", None, "a tensor beside noise_weight, got None"),
        ("row_keys", torch.ones(2, 2).int(), r"int32\[2, 3\] on .*, got int32\[2, 2\] on"),
        ("row_keys", torch.ones(2, 3).long(), r"int32\[2, 3\] on .*, got int64\[2, 3\] on"),
    ],
)
def test_bad_input(argument, value, message, provider, device):
    value = value.to(device) if isinstance(value, torch.Tensor) else value
    function = partial(inject_state, backend=provider)
    assert_refused(OP, function, valid(device), argument, value, message)


def test_bad_dtype():
    state = torch.ones(2, 4, dtype=torch.int32)
    message = r"float32\|.*\[\*, \*\], got int32\[2, 4\]"
    assert_refused(OP, inject_state, valid("cpu"), "state", state, message)


@pytest.mark.parametrize(
    "argument", ["embed", "previous_embed", "depth", "noise_weight", "row_keys"]
)
def test_bad_device(argument):
    function = partial(inject_state, backend="eager")
    value = valid("cpu")[argument].to("meta")
    assert_refused(OP, function, valid("cpu"), argument, value, ".* on cpu, got .* on meta")
