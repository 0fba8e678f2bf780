"""``exit_update``: deltas against NumPy in fp64, edges that must never be NaN, depth counting."""

from functools import partial

import numpy as np
import pytest
import torch

from rdkernels.ops import exit_update
from tests.support.checking import (
    INF,
    NAN,
    adversarial_rows,
    assert_close_to_reference,
    assert_refused,
    assert_same_bits,
    layouts,
)

OP = "exit_update"
CRITERIA = ("latent-diff", "cosine")


def reference(state, previous, criterion):
    """Delta of ordinary (finite, nonzero) rows in NumPy fp64."""
    now, before = state.double().cpu().numpy(), previous.double().cpu().numpy()
    if criterion == "latent-diff":
        delta = np.sqrt(((now - before) ** 2).sum(1) / (now**2).sum(1))
    else:
        lengths = np.sqrt((now**2).sum(1)) * np.sqrt((before**2).sum(1))
        delta = 1 - (now * before).sum(1) / lengths
    return torch.from_numpy(delta)


def plain(state, previous, criterion):
    """The same in fp32 PyTorch."""
    now, before = state.float(), previous.float()
    if criterion == "latent-diff":
        return (now - before).norm(dim=1) / now.norm(dim=1)
    return 1 - torch.cosine_similarity(now, before, dim=1)


def run(state, previous, provider, criterion="latent-diff", active=None, threshold=0.03):
    depth = torch.arange(len(state), dtype=torch.int32, device=state.device)
    delta, converged = exit_update(
        state, previous, depth, active,
        iterations=4, threshold=threshold, criterion=criterion, backend=provider,
    )  # fmt: skip
    assert delta.dtype == torch.float32 and converged.dtype == torch.bool
    assert delta.shape == converged.shape == (len(state),)
    assert not delta.isnan().any() and not converged[delta.isinf()].any()
    return delta, converged, depth


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (17, 129), (3, 1000), (5, 64)])
@pytest.mark.parametrize("step", [1.0, 1e-2])
def test_values(rows, width, step, criterion, provider, device, dtype, seed):
    previous = torch.randn(rows, width, device=device).to(dtype)
    state = (previous + step * torch.randn(rows, width, device=device)).to(dtype)
    delta, converged, _ = run(state, previous, provider, criterion)
    same, exact = plain(state, previous, criterion), reference(state, previous, criterion)
    assert_close_to_reference(delta, same, exact)
    clear = (exact - 0.03).abs() > 1e-4
    assert torch.equal(converged.cpu()[clear], (exact < 0.03)[clear])


def test_known_values(provider, device):
    state = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0]], device=device)
    previous = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]], device=device)
    assert run(state, previous, provider)[0].tolist() == pytest.approx([1.0, 2**0.5, 0.5])
    delta, _, _ = run(state, previous, provider, "cosine")
    assert delta.tolist() == pytest.approx([INF, 1.0, 0.0])


def test_relative_to_the_state_now(provider, device):
    """Not to the previous one: going from 1 to 4 is 3/4, not 3."""
    state, previous = torch.tensor([[4.0]], device=device), torch.tensor([[1.0]], device=device)
    assert run(state, previous, provider)[0].item() == pytest.approx(0.75)


def test_threshold_is_exclusive(provider, device):
    state, previous = torch.tensor([[2.0]], device=device), torch.tensor([[1.0]], device=device)
    assert not run(state, previous, provider, threshold=0.5)[1].item()
    assert run(state, previous, provider, threshold=0.5001)[1].item()
    assert not run(state, state, provider, threshold=0.0)[1].item()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_equal_states_have_not_moved(criterion, provider, device, dtype, seed):
    state = torch.randn(6, 33, device=device).to(dtype)
    state[0] = 0  # a zero state that stays zero has not moved either
    state[1] = torch.finfo(dtype).max
    delta, converged, _ = run(state, state.clone(), provider, criterion, threshold=1e-30)
    assert (delta == 0).all() and converged.all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_zero_state_is_infinitely_far(criterion, provider, device, dtype):
    zero, other = torch.zeros(1, 8, device=device, dtype=dtype), torch.ones(1, 8, device=device)
    delta, converged, _ = run(zero, other.to(dtype), provider, criterion, threshold=1e30)
    assert delta.item() == INF and not converged.item()


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("broken", ["state", "previous", "both"])
def test_broken_states_never_converge(broken, value, criterion, provider, device, dtype, seed):
    state = torch.randn(3, 16, device=device).to(dtype)
    previous = state.clone()
    if broken != "previous":
        state[1, 5] = value
    if broken != "state":
        previous[1, 5] = value
    delta, converged, depth = run(state, previous, provider, criterion, threshold=1e30)
    assert delta.tolist() == [0.0, INF, 0.0]
    assert converged.tolist() == [True, False, True]
    assert depth.tolist() == [4, 5, 6]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_adversarial_pairs_are_never_nan(criterion, provider, device, dtype):
    rows = adversarial_rows(16, dtype).to(device)
    for shift in range(len(rows)):
        run(rows, rows.roll(shift, 0).contiguous(), provider, criterion)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_inactive_rows(criterion, provider, device, dtype, seed):
    state = torch.randn(5, 16, device=device).to(dtype)
    previous = torch.randn(5, 16, device=device).to(dtype)
    state[1] = NAN
    previous[3] = state[3]
    active = torch.tensor([True, False, True, False, True], device=device)
    delta, converged, depth = run(state, previous, provider, criterion, active, threshold=1e30)
    everything, _, _ = run(state, previous, provider, criterion, threshold=1e30)
    assert delta[~active].tolist() == [0.0, 0.0]
    assert converged.tolist() == active.tolist()
    assert_same_bits(delta[active], everything[active])
    assert depth.tolist() == [4, 1, 6, 3, 8]


@pytest.mark.parametrize("iterations", [0, 1, 7])
def test_depth_is_counted_in_place(iterations, provider, device):
    depth = torch.tensor([0, 10, 2**30], dtype=torch.int32, device=device)
    before = depth
    state = torch.ones(3, 4, device=device)
    for _ in range(2):
        exit_update(state, state, depth, iterations=iterations, threshold=0.1, backend=provider)
    assert before is depth and depth.tolist() == [d + 2 * iterations for d in (0, 10, 2**30)]


def test_layouts(provider, device, dtype, seed):
    state, previous = torch.randn(2, 6, 40, device=device).to(dtype).unbind()
    same, exact = plain(state, previous, "latent-diff"), reference(state, previous, "latent-diff")
    for a, b in zip(layouts(state), layouts(previous), strict=True):
        for now, before in ((a, previous), (state, b), (a, b)):
            assert_close_to_reference(run(now, before, provider)[0], same, exact)


def test_strided_depth_and_active(provider, device):
    depth = torch.zeros(4, 2, dtype=torch.int32, device=device)
    active = torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1]], device=device).bool()
    state = torch.ones(4, 8, device=device)
    exit_update(
        state, state, depth[:, 0], active[:, 0], iterations=3, threshold=0.1, backend=provider
    )
    assert depth.tolist() == [[3, 0], [0, 0], [3, 0], [0, 0]]


def valid(device):
    state = torch.ones(2, 4, device=device)
    depth = torch.zeros(2, dtype=torch.int32, device=device)
    active = torch.ones(2, dtype=torch.bool, device=device)
    options = {"iterations": 1, "threshold": 0.1, "criterion": "cosine"}
    return {"state": state, "previous_state": state, "depth": depth, "active": active, **options}


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("state", torch.ones(4), r".*\[\*, \*\].*, got float32\[4\] on"),
        ("previous_state", torch.ones(2, 3), r"float32\[2, 4\] on .*, got float32\[2, 3\] on"),
        ("previous_state", torch.ones(2, 4).half(), r"float32\[2, 4\] on .*, got float16\[2, 4\]"),
        ("depth", torch.ones(3).int(), r"int32\[2\] on .*, got int32\[3\] on"),
        ("depth", torch.ones(2).long(), r"int32\[2\] on .*, got int64\[2\] on"),
        ("active", torch.ones(3).bool(), r"bool\[2\] on .*, got bool\[3\] on"),
        ("active", torch.ones(2).int(), r"bool\[2\] on .*, got int32\[2\] on"),
        ("criterion", "entropy", r"one of \('latent-diff', 'cosine'\), got 'entropy'"),
    ],
)
def test_bad_input(argument, value, message, provider, device):
    value = value.to(device) if isinstance(value, torch.Tensor) else value
    function = partial(exit_update, backend=provider)
    assert_refused(OP, function, valid(device), argument, value, message)


def test_bad_dtype():
    state = torch.ones(2, 4, dtype=torch.int32)
    message = r"float32\|.*\[\*, \*\], got int32\[2, 4\]"
    assert_refused(OP, exit_update, valid("cpu"), "state", state, message)


@pytest.mark.parametrize("argument", ["previous_state", "depth", "active"])
def test_bad_device(argument):
    function = partial(exit_update, backend="eager")
    value = valid("cpu")[argument].to("meta")
    assert_refused(OP, function, valid("cpu"), argument, value, ".* on cpu, got .* on meta")
