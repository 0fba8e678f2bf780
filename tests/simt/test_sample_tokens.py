"""The CUDA kernels of ``sample_tokens`` in the emulator, against the eager op."""

from __future__ import annotations

import math
import random

import pytest
import torch

from rdkernels.backends.eager import sampling as eager

from .build import run_sanitized
from .parameters import parameters
from .schedules import adversarial
from .tensors import (
    DTYPES,
    NAN,
    aligned,
    assert_same_everywhere,
    load_kernels,
    sectors,
    sectors_of,
    unaligned,
)

OP = "sample_tokens"
INF = float("inf")
DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0}
GREEDY = {"temperature": 0.0}
# So hot that any token may win that a wrong threshold lets through.
HOT = {"temperature": 100.0, "top_k": 5}
RULES = [
    {},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 50},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"temperature": 2.0, "top_k": 300, "top_p": 0.95, "min_p": 0.01, "seed": -3},
]


@pytest.fixture(scope="module")
def kernels():
    return load_kernels(OP)


def random_keys(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, (rows, 3), generator=generator, dtype=torch.int32)


def run(kernels, logits, keys=None, emulator=None, **rules):
    """(tokens, report) of one emulated launch; ``emulator``: options of the emulator."""
    rules = DEFAULTS | rules
    out = torch.full((len(logits),), -1, dtype=torch.int64)
    params = parameters(
        OP,
        logits=logits,
        row_keys=keys,
        out=out,
        rows=logits.size(0),
        vocabulary=logits.size(1),
        seed=rules["seed"],
        top_k=rules["top_k"],
        temperature=rules["temperature"],
        top_p=rules["top_p"],
        min_p_offset=rules["temperature"] * math.log(rules["min_p"]) if rules["min_p"] else -INF,
    )
    return out, kernels.run(params, DTYPES[logits.dtype], **(emulator or {}))


def expected(logits, keys, **rules):
    return eager.sample_tokens(logits, keys, **(DEFAULTS | rules))


def check(kernels, logits, keys=None, **rules):
    """Token by token; a mass within 1e-5 of top_p may fall on either side of it."""
    keys = random_keys(len(logits)) if keys is None else keys
    got, want = run(kernels, logits, keys, **rules)[0], expected(logits, keys, **rules)
    differs = got != want
    if differs.any() and rules.get("top_p", 1.0) < 1.0:
        for nudge in (1 - 1e-5, 1 + 1e-5):
            nudged = expected(logits, keys, **(rules | {"top_p": rules["top_p"] * nudge}))
            differs &= got != nudged
    assert not differs.any(), (rules, got[differs], want[differs], logits[differs][:4])
    return got


def random_logits(seed, rows, vocabulary, dtype, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocabulary, generator=generator) * scale).to(dtype)


# ---- values ----


@pytest.mark.parametrize("place", [aligned, unaligned])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_greedy(kernels, dtype, place):
    for vocabulary in (1, 2, 7, 511, 512, 4096, 5001):
        check(kernels, place(random_logits(vocabulary, 3, vocabulary, dtype)), **GREEDY)


def test_greedy_huginn(kernels):
    logits = aligned(random_logits(1, 2, 65536, torch.bfloat16))
    tokens, report = run(kernels, logits, **GREEDY)
    assert torch.equal(tokens, expected(logits, None, **GREEDY))
    assert sectors(report)[0] == sectors_of(logits) == report["global"]["unique_read_sectors"]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sampling(kernels, dtype, rules):
    for place in (aligned, unaligned):
        for vocabulary in (1, 5, 264, 2600, 2601):
            check(kernels, place(random_logits(vocabulary, 3, vocabulary, dtype)), **rules)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sampling_huginn(kernels, dtype):
    """A whole vocabulary under all rules at once, and the memory that it takes."""
    logits, keys = aligned(random_logits(2, 1, 65536, dtype)), random_keys(1)
    rules = {"temperature": 1.1, "top_k": 1000, "top_p": 0.95, "min_p": 1e-4}
    check(kernels, logits, keys, **rules)
    report = run(kernels, logits, keys, **rules)[1]
    searches = 2 * {torch.float32: 8, torch.bfloat16: 4, torch.float16: 5}[dtype]
    passes = 1 + searches + 1 + 1  # the largest, top-k and top-p, equal masses, the choice
    warps = report["threads"] // 32
    read, unique = sectors(report)[0], report["global"]["unique_read_sectors"]
    assert read == passes * sectors_of(logits) + 2 * warps, "and two words of the key per warp"
    assert unique == sectors_of(logits) + 1
    assert report["bank_conflicts"] == 0
    assert report["static_shared_bytes"] <= 48 * 1024


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_flat_logits(kernels, rules):
    """Everything is equal, or nearly: all are kept, and the noise alone decides."""
    for dtype in DTYPES:
        check(kernels, torch.zeros(3, 700, dtype=dtype), **rules)
        nearly = torch.arange(700) % 5 * torch.finfo(dtype).eps + 1
        check(kernels, nearly.to(dtype).expand(2, 700).contiguous(), **rules)


@pytest.mark.parametrize("rules", [GREEDY, *RULES], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hostile_values(kernels, dtype, rules):
    info = torch.finfo(dtype)
    patterns = [
        [NAN],
        [-INF],
        [NAN, -INF],
        [NAN, 1.0, 2.0, NAN, 2.0],
        [INF, 1.0, INF, NAN],
        [0.0, -0.0],
        [-0.0, 0.0, -1e-3],
        [info.max, -info.max, info.max / 2],
        [-info.max, -INF, -info.max / 2],
        [info.tiny, info.tiny / 2, 0.0, -info.tiny / 2],
        [-3.0, -3.0, -3.0, -4.0],
    ]
    for width in (1, 4, 9, 600):
        rows = [(pattern * width)[:width] for pattern in patterns]
        check(kernels, aligned(torch.tensor(rows).to(dtype)), **rules)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_takes_no_place_among_the_largest(kernels, dtype):
    logits = random_logits(11, 8, 200, dtype)
    logits[:, ::2] = NAN
    check(kernels, logits, **HOT)


@pytest.mark.parametrize("temperature", [1e-300, 1e-44, 1e-20, 1e4, 1e30, 1e300])
def test_extreme_temperatures(kernels, temperature):
    for logits in (random_logits(4, 6, 300, torch.float32), torch.randn(3, 300) * 1e37):
        for rules in ({}, {"top_p": 0.9}, {"min_p": 0.5}, {"top_k": 3}):
            check(kernels, logits, temperature=temperature, **rules)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_top_k_around_the_vocabulary(kernels, dtype):
    logits = random_logits(5, 4, 37, dtype).round()  # many ties
    for top_k in (1, 2, 5, 35, 36, 37, 38, 2**40):
        check(kernels, logits, top_k=top_k, temperature=5.0)


def test_ties_go_to_the_lowest_id_wherever_they_are(kernels):
    rng = random.Random(6)
    for _ in range(20):
        logits = torch.zeros(1, 9000, dtype=torch.bfloat16)
        places = sorted(rng.sample(range(9000), 3))
        logits[0, places] = 1.0
        assert run(kernels, logits, **GREEDY)[0].item() == places[0]
        logits[0, places] = INF
        assert run(kernels, logits, random_keys(1))[0].item() == places[0]


def random_problem(rng):
    """Few distinct values, every kind of rule, sizes at which threads and loads have rests."""
    dtype = rng.choice(list(DTYPES))
    rows, vocabulary = rng.randint(1, 3), rng.choice([rng.randint(1, 40), rng.randint(500, 2200)])
    values = [rng.gauss(0, 3) for _ in range(rng.randint(1, 30))] + rng.choice([[], [NAN, -INF]])
    logits = torch.tensor([rng.choice(values) for _ in range(rows * vocabulary)])
    rules = {
        "temperature": rng.choice([0.0, 0.2, 1.0, 4.0]),
        "top_k": rng.choice([0, 0, 1, rng.randint(1, vocabulary)]),
        "top_p": rng.choice([1.0, 0.99, rng.uniform(0.05, 1.0)]),
        "min_p": rng.choice([0.0, 1.0, rng.random()]),
        "seed": rng.randrange(-(2**63), 2**63),
    }
    place = rng.choice([aligned, unaligned])
    return place(logits.view(rows, vocabulary).to(dtype)), rules


def test_random_problems(kernels, seed):
    rng = random.Random(seed)
    for _ in range(40):
        logits, rules = random_problem(rng)
        check(kernels, logits, random_keys(len(logits), rng.randrange(2**31)), **rules)


@pytest.mark.slow
def test_many_random_problems(kernels, seed):
    rng = random.Random(seed)
    for _ in range(1000):
        logits, rules = random_problem(rng)
        check(kernels, logits, random_keys(len(logits), rng.randrange(2**31)), **rules)


# ---- execution ----


@pytest.mark.parametrize(
    "rules", [GREEDY, {"top_k": 40, "top_p": 0.9, "min_p": 0.01}, HOT], ids=str
)
def test_every_schedule(kernels, rules):
    logits, keys = random_logits(7, 3, 3000, torch.bfloat16), random_keys(3)
    results = {}
    for name, options in adversarial(seed=9, random_runs=2).items():
        results[name] = (run(kernels, logits, keys, options, **rules)[0],)
    assert_same_everywhere(results | {"eager": (expected(logits, keys, **rules),)})


def test_thresholds_do_not_depend_on_the_schedule(kernels):
    """Sums of masses in a fixed order: a token at the very edge of top-p stays on its side."""
    logits, keys = torch.zeros(1, 600), random_keys(1)
    logits[0, ::3] = 0.25
    kept = math.exp(0.25) * 200 / (math.exp(0.25) * 200 + 400)  # the mass of the larger third
    for top_p in (kept * (1 - 1e-7), kept, kept * (1 + 1e-7)):
        results = {}
        for name, options in adversarial(seed=10, random_runs=2).items():
            results[name] = (run(kernels, logits, keys, options, top_p=top_p)[0],)
        assert_same_everywhere(results)


def test_a_row_does_not_depend_on_its_batch(kernels):
    logits, keys = random_logits(8, 5, 100, torch.float32), random_keys(5)
    together = run(kernels, logits, keys, top_p=0.8)[0]
    for i in range(5):
        alone = run(kernels, logits[i : i + 1], keys[i : i + 1], top_p=0.8)[0]
        assert alone.item() == together[i].item()


@pytest.mark.slow
def test_sanitizers():
    script = f"""
import torch
import {OP}_emulated as kernels
from tests.simt.test_{OP} import GREEDY, aligned, check, random_logits, unaligned
for dtype in (torch.bfloat16, torch.float32):
    for rules in (GREEDY, dict(top_k=20, top_p=0.9, min_p=0.01)):
        for vocabulary in (9, 1031, 1040):
            logits = random_logits(vocabulary, 2, vocabulary, dtype)
            logits[0, 3:6] = float("inf")
            check(kernels, aligned(logits), **rules)
            check(kernels, unaligned(logits), **rules)
"""
    done = run_sanitized(f"tests/simt/{OP}_emulated.cpp", script)
    assert done.returncode == 0, done.stderr
