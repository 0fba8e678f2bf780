"""``sample_tokens``: greedy ties, keep-sets by brute force, distribution, keyed randomness."""

import math
from functools import partial

import pytest
import torch

from rdkernels.ops import sample_tokens
from tests.support import philox_reference
from tests.support.checking import (
    INF,
    NAN,
    assert_refused,
    layouts,
)
from tests.support.philox_reference import random_keys

OP = "sample_tokens"


def keys_of_positions(count, device="cpu"):
    return torch.tensor([[0, position, 0] for position in range(count)]).int().to(device)


# Greedy.


@pytest.mark.parametrize(("rows", "vocabulary"), [(0, 5), (1, 1), (3, 7), (17, 1000), (2, 65536)])
def test_greedy_takes_the_largest(rows, vocabulary, provider, device, dtype, seed):
    logits = torch.randn(rows, vocabulary, device=device).to(dtype)
    tokens = sample_tokens(logits, backend=provider)
    assert tokens.dtype == torch.int64 and tokens.shape == (rows,)
    best = logits.float().cpu().numpy().argmax(axis=1) if rows else []
    assert tokens.tolist() == list(best), "numpy takes the first of equals, too"


def test_greedy_ties_go_to_the_lowest_id(provider, device, dtype):
    rows = [
        [0, 3, 1, 3, 3],
        [2, 2, 2, 2, 2],
        [-1, -5, -1, -5, -1],
        [-0.0, 0.0, 0.0, -0.0, 0.0],
        [INF, 1, INF, 2, 3],
        [-INF, -INF, -7, -7, -INF],
    ]
    logits = torch.tensor(rows, device=device).to(dtype)
    assert sample_tokens(logits, backend=provider).tolist() == [1, 0, 0, 0, 0, 2]


@pytest.mark.parametrize("distance", [1, 31, 32, 255, 256, 4096])
def test_greedy_ties_far_apart(distance, provider, device, dtype):
    logits = torch.zeros(2, 9000, device=device, dtype=dtype)
    logits[0, [4001, 4001 + distance]] = 1
    logits[1, [4001 - min(distance, 4001), 4001]] = 1
    assert sample_tokens(logits, backend=provider).tolist() == [4001, 4001 - min(distance, 4001)]


SPECIAL_ROWS = [
    ([NAN, 1, 2, NAN], 2),
    ([NAN, NAN, NAN, -3], 3),
    ([NAN, NAN, NAN, NAN], 0),
    ([-INF, -INF, -INF, -INF], 0),
    ([-INF, NAN, -INF, NAN], 0),
    ([0, 1, INF, 2], 2),
    ([NAN, -INF, INF, NAN], 2),
    ([-INF, -INF, -INF, -1e4], 3),
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 1e-3, "top_k": 2},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 5.0, "min_p": 0.9, "top_k": 1},
        {"temperature": 1.0, "top_k": 3, "top_p": 0.9, "min_p": 0.1},
    ],
    ids=str,
)
def test_nan_and_infinities(options, provider, device, dtype):
    """NaN is never chosen, a row of nothing gives 0, an infinite logit is a certain token."""
    logits = torch.tensor([row for row, _ in SPECIAL_ROWS], device=device).to(dtype)
    tokens = sample_tokens(
        logits, keys_of_positions(len(logits), device), backend=provider, **options
    )
    expected = [token for _, token in SPECIAL_ROWS]
    if options.get("temperature") and options.get("top_k") != 1:
        assert tokens[0].item() in (1, 2)
        tokens[0] = 2
    assert tokens.tolist() == expected


def test_greedy_ignores_the_other_options(provider, device, seed):
    logits = torch.randn(9, 50, device=device)
    want = sample_tokens(logits, backend=provider)
    options = {"temperature": 0.0, "top_k": 3, "top_p": 0.2, "min_p": 0.5, "seed": seed}
    assert torch.equal(sample_tokens(logits, **options, backend=provider), want)
    keys = random_keys(9, device)
    assert torch.equal(sample_tokens(logits, keys, **options, backend=provider), want)


# Keep-sets and the choice, against brute force.


def keep_set(logits, temperature, top_k, top_p, min_p):
    """Kept tokens of one row, and by how much the closest token was kept or dropped.

    The docstring's rules token by token, in Python floats.
    """
    scaled = [value / temperature for value in logits]
    kept, margin = set(range(len(scaled))), math.inf

    def probabilities():
        top = max(scaled[t] for t in kept)
        total = sum(math.exp(scaled[t] - top) for t in kept)
        return {t: math.exp(scaled[t] - top) / total for t in kept}

    if top_k:  # more likely tokens than this one: fewer than k
        kept = {t for t in kept if sum(s > scaled[t] for s in scaled) < top_k}
    if top_p < 1:
        p = probabilities()
        above = {t: sum(q for q in p.values() if q > p[t]) for t in kept}
        margin = min(margin, *(abs(mass - top_p) for mass in above.values()))
        kept = {t for t in kept if above[t] < top_p}
    if min_p:
        p = probabilities()
        ratio = {t: p[t] / max(p.values()) for t in kept}
        margin = min(margin, *(abs(r - min_p) for r in ratio.values()))
        kept = {t for t in kept if ratio[t] >= min_p}
    return kept, margin


OPTIONS = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_k": 12},
    {"temperature": 1.0, "top_k": 100},
    {"temperature": 2.0, "top_p": 0.01},
    {"temperature": 2.0, "top_p": 0.7},
    {"temperature": 1.0, "top_p": 0.95},
    {"temperature": 1.5, "min_p": 0.3},
    {"temperature": 1.0, "min_p": 0.99},
    {"temperature": 0.7, "top_k": 6, "top_p": 0.8},
    {"temperature": 2.0, "top_k": 6, "top_p": 0.9, "min_p": 0.4},
]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_choice_by_brute_force(options, tied, provider, device, dtype, seed):
    """The best of ``logits / temperature + gumbel`` over the keep-set, row by row."""
    logits = torch.randn(24, 12) * 1.5
    logits = (logits.round() if tied else logits).to(dtype)
    keys = random_keys(24)
    tokens = sample_tokens(
        logits.to(device), keys.to(device), **options, seed=seed, backend=provider
    )
    noise = philox_reference.gumbel(keys, 12, seed)
    rules = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
    checked = 0
    for row, token in enumerate(tokens.tolist()):
        kept, margin = keep_set(logits[row].tolist(), **rules)
        score = logits[row].double() / rules["temperature"] + noise[row]
        ranking = sorted(kept, key=lambda t: -score[t])
        if len(ranking) > 1:
            margin = min(margin, float(score[ranking[0]] - score[ranking[1]]))
        if margin > 1e-4:  # else rounding may decide
            assert token == ranking[0], (row, kept)
            checked += 1
    assert checked >= 16


@pytest.mark.slow_interpreted
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 0, 3}),  # 0 and 3 are equal: both or none
        ({"top_k": 3}, {1, 0, 3}),
        ({"top_k": 4}, {0, 1, 2, 3}),
        ({"top_p": 0.49}, {1}),
        ({"top_p": 0.51}, {1, 0, 3}),
        ({"top_p": 0.89}, {1, 0, 3}),
        ({"top_p": 0.91}, {0, 1, 2, 3}),
        ({"min_p": 0.39}, {1, 0, 3}),
        ({"min_p": 0.41}, {1}),
        ({"min_p": 0.19}, {0, 1, 2, 3}),
        ({"min_p": 1.0}, {1}),
        # After top-k 3 the masses are 5/9, 2/9, 2/9: top-p works on what top-k left.
        ({"top_k": 3, "top_p": 0.54}, {1}),
        ({"top_k": 3, "top_p": 0.57}, {1, 0, 3}),
    ],
    ids=str,
)
def test_keep_sets_by_name(options, kept, provider, device):
    """Probabilities 0.2, 0.5, 0.1, 0.2: every kept token turns up, no other does."""
    logits = torch.tensor([0.2, 0.5, 0.1, 0.2], device=device).log().expand(300, 4)
    keys = keys_of_positions(300, device)
    tokens = sample_tokens(logits, keys, temperature=1.0, seed=3, **options, backend=provider)
    assert set(tokens.tolist()) == kept


# Distribution and keys.


@pytest.mark.not_interpreted("20 000 programs, a quarter of an hour")
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"temperature": 1.0}, range(8)),
        ({"temperature": 0.5}, range(8)),
        ({"temperature": 2.0, "top_k": 5}, range(3, 8)),
    ],
    ids=["T=1", "T=0.5", "top-k"],
)
def test_distribution_is_softmax(options, kept, provider, device):
    logits = torch.linspace(-1.0, 1.0, 8)
    rows = 20_000
    keys = keys_of_positions(rows, device)
    keys[:, 0] = keys[:, 1] % 7
    tokens = sample_tokens(
        logits.to(device).expand(rows, 8), keys, **options, seed=2024, backend=provider
    )
    counts = torch.bincount(tokens.cpu(), minlength=8).double()
    assert counts.sum() == counts[list(kept)].sum()
    expected = rows * torch.softmax(logits[list(kept)].double() / options["temperature"], 0)
    chi_square = ((counts[list(kept)] - expected).square() / expected).sum()
    assert chi_square < 40, "7 degrees of freedom; above 40 with probability 1e-6"


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-30, 1e-44, 1e-300])
def test_small_temperatures_are_greedy(temperature, provider, device, dtype):
    """However small: dividing by it must not make the largest logits equal."""
    logits = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0], [-3.0, -1.0, -2.0]], device=device)
    keys = keys_of_positions(3, device)
    tokens = sample_tokens(logits.to(dtype), keys, temperature=temperature, backend=provider)
    assert tokens.tolist() == [2, 0, 1]


def test_huge_logits_are_told_apart(provider, device, dtype):
    largest = torch.finfo(dtype).max
    logits = torch.tensor([[largest / 2, largest, 0.0], [0.0, -largest, -largest]], device=device)
    keys = keys_of_positions(2, device)
    for options in ({}, {"top_p": 0.5}, {"min_p": 0.1}, {"top_k": 2}):
        tokens = sample_tokens(
            logits.to(dtype), keys, temperature=1e-2, **options, backend=provider
        )
        assert tokens.tolist() == [1, 0]


def test_adding_a_constant_changes_nothing(provider, device, seed):
    logits = torch.randint(-4, 4, (50, 16), device=device).float()
    draw = partial(
        sample_tokens, row_keys=random_keys(50, device), temperature=1.0, top_p=0.9, seed=seed,
        backend=provider,
    )  # fmt: skip
    assert torch.equal(draw(logits), draw(logits + 64))


def test_same_token_at_every_step(provider, device, seed):
    logits, keys = torch.randn(40, 32, device=device), random_keys(40, device)
    later = keys.clone()
    later[:, 2] = random_keys(40, device)[:, 2]
    draw = partial(sample_tokens, logits, temperature=1.5, seed=seed, backend=provider)
    assert torch.equal(draw(row_keys=keys), draw(row_keys=later))
    assert later[0, 2] != 0 or keys[0, 2] != 0, "and the keys are left alone"


@pytest.mark.parametrize("field", [0, 1])
def test_sequence_and_position_matter(field, provider, device, seed):
    keys = torch.zeros(200, 3, dtype=torch.int32, device=device)
    keys[:, field] = torch.arange(200, device=device)
    logits = torch.zeros(200, 100, device=device)
    tokens = sample_tokens(logits, keys, temperature=1.0, seed=seed, backend=provider)
    assert len(set(tokens.tolist())) > 50


def test_seed_matters(provider, device):
    logits, keys = torch.zeros(50, 100, device=device), keys_of_positions(50, device)
    draws = [
        sample_tokens(logits, keys, temperature=1.0, seed=s, backend=provider).tolist()
        for s in (0, 1, 2**32, -1, 2**63 - 1)
    ]
    assert len({tuple(draw) for draw in draws}) == 5


def test_batch_does_not_matter(provider, device, dtype, seed):
    logits, keys = torch.randn(20, 33, device=device).to(dtype), random_keys(20, device)
    draw = partial(sample_tokens, temperature=1.2, top_k=20, top_p=0.9, seed=seed, backend=provider)
    together, order = draw(logits, keys), torch.randperm(20)
    assert torch.equal(draw(logits[order], keys[order]), together[order])
    alone = [draw(logits[i : i + 1], keys[i : i + 1]).item() for i in range(20)]
    assert alone == together.tolist()


def test_layouts(provider, device, dtype, seed):
    logits, keys = torch.randn(6, 40, device=device).to(dtype), random_keys(6, device)
    for options in ({}, {"temperature": 1.0, "top_k": 9, "top_p": 0.9, "min_p": 0.05}):
        want = sample_tokens(logits, keys, seed=seed, **options, backend=provider)
        for variant in layouts(logits):
            got = sample_tokens(variant, keys, seed=seed, **options, backend=provider)
            assert torch.equal(got, want)
    spaced = torch.stack((keys, keys + 1), dim=2)[..., 0]
    got = sample_tokens(logits, spaced, temperature=1.0, seed=seed, backend=provider)
    assert torch.equal(
        got, sample_tokens(logits, keys, temperature=1.0, seed=seed, backend=provider)
    )


def test_inputs_are_not_changed(provider, device, seed):
    logits, keys = torch.randn(4, 8, device=device), random_keys(4, device)
    before = logits.clone(), keys.clone()
    sample_tokens(logits, keys, temperature=1.0, top_k=3, top_p=0.9, backend=provider)
    assert torch.equal(logits, before[0]) and torch.equal(keys, before[1])


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("logits", torch.ones(4), r".*\[\*, \*\].*, got float32\[4\] on"),
        ("logits", torch.ones(2, 0), "a vocabulary of at least one token, got "),
        ("row_keys", None, "a tensor at temperature > 0, got None"),
        ("row_keys", torch.ones(3, 3).int(), r"int32\[2, 3\] on .*, got int32\[3, 3\] on"),
        ("row_keys", torch.ones(2, 3).long(), r"int32\[2, 3\] on .*, got int64\[2, 3\] on"),
        ("temperature", -1.0, "a finite value >= 0, got -1"),
        ("temperature", INF, "a finite value >= 0, got inf"),
        ("temperature", NAN, "a finite value >= 0, got nan"),
        ("top_k", -1, r"a count >= 0 \(0: no limit\), got -1"),
        ("top_p", 0.0, "0 < top_p <= 1, got 0"),
        ("top_p", 1.5, "0 < top_p <= 1, got 1.5"),
        ("top_p", NAN, "0 < top_p <= 1, got nan"),
        ("min_p", -0.1, "0 <= min_p <= 1, got -0.1"),
        ("min_p", 1.5, "0 <= min_p <= 1, got 1.5"),
    ],
)
def test_bad_input(argument, value, message, provider, device):
    keys = torch.ones(2, 3, dtype=torch.int32, device=device)
    arguments = {"logits": torch.ones(2, 4, device=device), "row_keys": keys, "temperature": 1.0}
    value = value.to(device) if isinstance(value, torch.Tensor) else value
    function = partial(sample_tokens, backend=provider)
    assert_refused(OP, function, arguments, argument, value, message)


def test_bad_dtype():
    logits = torch.ones(2, 4)
    message = r"float32\|.*\[\*, \*\], got int32\[2, 4\]"
    assert_refused(OP, sample_tokens, {"logits": logits}, "logits", logits.int(), message)


def test_bad_device():
    keys = keys_of_positions(2)
    arguments = {"logits": torch.ones(2, 4), "row_keys": keys, "temperature": 1.0}
    function = partial(sample_tokens, backend="eager")
    message = "int32.* on cpu, got .* on meta"
    assert_refused(OP, function, arguments, "row_keys", keys.to("meta"), message)
