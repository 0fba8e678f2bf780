"""The CUDA kernel of ``advance_wavefront`` in the emulator, against the eager op."""

from __future__ import annotations

import random

import pytest
import torch

from rdkernels.backends.eager import wavefront as eager
from rdkernels.ops import OPS

from .build import run_sanitized
from .parameters import parameters
from .schedules import adversarial
from .tensors import assert_same_everywhere, load_kernels

OP = "advance_wavefront"
UNWRITTEN, GUARD = -7, -99


@pytest.fixture(scope="module")
def kernels():
    return load_kernels(OP)


def int32(values):
    return torch.tensor(values, dtype=torch.int32)


def random_state(rng, batch, max_rows, *, agree=0.8, settle=0.8, tokens=4):
    """Arguments of one call: ``batch`` sequences of up to ``max_rows`` rows, some without any.

    ``agree``: how likely a row has consumed what is predicted for it; ``settle``: is settled.
    """
    lengths = [rng.choice([0, 1, rng.randint(0, max_rows)]) for _ in range(batch)]
    starts = [rng.randint(0, 5) for _ in range(batch)]
    # A row's sample must have a place: the last row sits at limit - 2 at most.
    limits = [s + n + 1 + rng.choice([0, 0, 1, 2, 9]) for s, n in zip(starts, lengths, strict=True)]
    knowns = [
        rng.choice([s + 1, s + 1, rng.randint(1, limit)])
        for s, limit in zip(starts, limits, strict=True)
    ]
    width = max(limits, default=1) + rng.randint(0, 2)
    padding = rng.randint(0, 3)
    num_rows = sum(lengths) + padding
    # Columns of a larger table: rows are not next to each other.
    table = torch.randint(0, tokens, (batch, width + 3), generator=_generator(rng))
    sampled = torch.randint(0, tokens, (num_rows,), generator=_generator(rng))
    first = 0
    for b, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        for j in range(1, length):
            if rng.random() < agree:
                table[b, start + j] = sampled[first + j - 1]
        first += length
    cu_rows = int32([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()])
    return {
        "tokens": table[:, :width],
        "start": int32(starts),
        "done": torch.tensor([rng.random() < 0.2 for _ in range(batch)], dtype=torch.bool),
        "committed_depth": torch.full((batch, width + 1), UNWRITTEN, dtype=torch.int32)[:, :width],
        "sampled": sampled,
        "settled": torch.rand(num_rows, generator=_generator(rng)) < settle,
        "depth": torch.randint(1, 99, (num_rows,), generator=_generator(rng), dtype=torch.int32),
        "cu_rows": cu_rows,
        "limit": int32(limits),
        "known": int32(knowns),
        "sequence_ids": int32([rng.randrange(-(2**31), 2**31) for _ in range(batch)]),
        "stop_tokens": torch.tensor(rng.choice([[], [], [0], [9, 1, 2**40]]), dtype=torch.int64),
        "headway": rng.choice([1, 1, 2, 5]),
        "max_wavefront": rng.choice([1, 2, 7, 128]),
        "restart": rng.random() < 0.5,
    }


def _generator(rng):
    return torch.Generator().manual_seed(rng.randrange(2**31))


def fresh(state):
    """A copy with the strides of the original."""

    def copy(value):
        if not isinstance(value, torch.Tensor):
            return value
        whole = value if value._base is None else value._base
        return whole.clone().as_strided(value.shape, value.stride(), value.storage_offset())

    return {name: copy(value) for name, value in state.items()}


WRITTEN = ("tokens", "start", "done", "committed_depth")


def most_rows(state):
    """As many rows as the next step can have."""
    return state["sampled"].numel() + state["start"].numel() * state["headway"]


def run(kernels, state, capacity=None, **options):
    """Everything the op writes or returns, from one emulated launch on a copy of ``state``."""
    state = fresh(state)
    batch, num_rows = state["start"].numel(), state["sampled"].numel()
    capacity = most_rows(state) if capacity is None else capacity
    # One element more than there should be: it must stay.
    outputs = {
        "next_cu_rows": torch.full((batch + 2,), GUARD, dtype=torch.int32),
        "source_row": torch.full((capacity + 1,), GUARD, dtype=torch.int32),
        "committed": torch.full((batch + 1,), GUARD, dtype=torch.int32),
        "row_tokens": torch.full((capacity + 1,), GUARD),
        "row_keys": torch.full((capacity + 1, 5), GUARD, dtype=torch.int32),
    }
    params = parameters(
        OP,
        **(state | outputs),
        num_rows=num_rows,
        capacity=capacity,
        max_length=state["tokens"].size(1),
        num_stop_tokens=state["stop_tokens"].numel(),
        num_sequences=batch,
    )
    kernels.run(params, **options)
    for name, output in outputs.items():
        assert (output[-1] == GUARD).all(), f"{name}: written past its end"
        outputs[name] = output[:-1]
    assert (outputs["row_keys"][:, 3:] == GUARD).all(), "written between rows"
    outputs["row_keys"] = outputs["row_keys"][:, :3]
    tables = [state[name] if state[name]._base is None else state[name]._base for name in WRITTEN]
    return (*tables, *outputs.values())


def specification(state, capacity=None):
    state = fresh(state)
    results = eager.advance_wavefront(**state)
    capacity = most_rows(state) if capacity is None else capacity
    outputs = (
        results[0].clone(),
        results[1].new_empty(capacity),
        results[2].clone(),
        results[3].new_empty(capacity),
        results[4].new_empty(capacity, 3),
    )
    OPS[OP].write(results, outputs)
    tables = [state[name] if state[name]._base is None else state[name]._base for name in WRITTEN]
    return (*tables, *outputs)


def check(kernels, state, capacity=None):
    names = (*WRITTEN, "next_cu_rows", "source_row", "committed", "row_tokens", "row_keys")
    results = (run(kernels, state, capacity), specification(state, capacity))
    for name, got, want in zip(names, *results, strict=True):
        assert torch.equal(got, want), f"{name}\n{got}\n{want}\n{state}"


def sweep(kernels, seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        batch = rng.choice([1, 2, 3, 5, 40])
        max_rows = rng.choice([1, 3, 12, 70, 140])
        chances = {"agree": rng.choice([0.3, 0.9, 1.0]), "settle": rng.choice([0.3, 0.9, 1.0])}
        state = random_state(rng, batch, max_rows, tokens=rng.choice([2, 30]), **chances)
        check(kernels, state, rng.choice([None, None, rng.randint(0, 2 * most_rows(state))]))


def test_random_states(kernels, seed):
    sweep(kernels, seed, 120)


@pytest.mark.slow
def test_many_random_states(kernels, seed):
    sweep(kernels, seed, 2000)


def test_no_sequences(kernels):
    check(kernels, random_state(random.Random(1), 0, 3))


def one_sequence(rows, limit, **changes):
    """Rows that all can commit, from position 3 on."""
    state = {
        "tokens": torch.full((1, limit), 5),
        "start": int32([3]),
        "done": torch.tensor([False]),
        "committed_depth": torch.full((1, limit), UNWRITTEN, dtype=torch.int32),
        "sampled": torch.full((rows,), 5),
        "settled": torch.ones(rows, dtype=torch.bool),
        "depth": torch.arange(rows, dtype=torch.int32) + 1,
        "cu_rows": int32([0, rows]),
        "limit": int32([limit]),
        "known": int32([4]),
        "sequence_ids": int32([-6]),
        "stop_tokens": torch.tensor([], dtype=torch.int64),
        "headway": 1,
        "max_wavefront": 128,
        "restart": False,
    }
    return state | changes


def together(states):
    """One batch of states of one sequence each; the numbers are those of the first."""
    width = max(state["tokens"].size(1) for state in states)

    def joined(name):
        values = [state[name] for state in states]
        if name in ("tokens", "committed_depth"):
            values = [
                torch.nn.functional.pad(v, (0, width - v.size(1)), value=UNWRITTEN) for v in values
            ]
        return torch.cat(values)

    batch = {name: joined(name) for name, value in states[0].items() if name not in SHARED}
    counts = torch.tensor([0] + [state["sampled"].numel() for state in states])
    return states[0] | batch | {"cu_rows": counts.cumsum(0).int()}


SHARED = ("cu_rows", "stop_tokens", "headway", "max_wavefront", "restart")

# The warp looks at 32 rows at a time: everything that can end a prefix, on both sides of that.
EDGES = [0, 1, 30, 31, 32, 33, 63, 64]


def ends_of_the_prefix(rows, at, limit, **changes):
    """Row ``at`` is unsettled, or stale, or samples the stop token 7; or its token is known."""
    state = one_sequence(rows, limit, stop_tokens=torch.tensor([1, 7]), **changes)
    unsettled, stale, stopped = fresh(state), fresh(state), fresh(state)
    unsettled["settled"][at] = False
    stale["tokens"][0, 3 + at] = 6
    stopped["sampled"][at] = 7
    right = fresh(stopped)
    if at + 1 < rows:
        right["tokens"][0, 3 + at + 1] = 7
    known = int32([3 + at + 2])
    given = fresh(right) | {"known": known}
    return [
        state,
        unsettled,
        stale,
        stopped,
        right,
        given,
        given | {"sampled": state["sampled"] + 3},
    ]


@pytest.mark.parametrize("restart", [False, True], ids=["redraft", "restart"])
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64, 65])
def test_ends_of_the_prefix(kernels, rows, restart):
    for limit in (3 + rows + 1, 3 + rows + 2, 3 + rows + 30):
        cases = (ends_of_the_prefix(rows, at, limit, restart=restart) for at in EDGES if at < rows)
        check(kernels, together([state for case in cases for state in case]))


@pytest.mark.parametrize("restart", [False, True], ids=["redraft", "restart"])
@pytest.mark.parametrize("headway", [1, 3, 40])
@pytest.mark.parametrize("max_wavefront", [1, 4, 50])
def test_extension(kernels, headway, max_wavefront, restart):
    """Four rows from position 3 on: every limit and number of known tokens around them."""
    states = []
    for limit in (8, 9, 10, 60):
        for known in (4, 6, 7, 8, 9, 12, 50):
            state = one_sequence(4, limit, headway=headway, max_wavefront=max_wavefront)
            state |= {"known": int32([min(known, limit)]), "restart": restart}
            state["tokens"][0, 7:] = torch.arange(limit - 7) + 20
            state["settled"][2] = False
            corrected = fresh(state)
            corrected["sampled"][1] = 6  # another token than row 2 consumed
            states += [state, corrected]
    check(kernels, together(states))


def test_a_limit_past_the_table_does_not_write_past_it(kernels):
    """Outside the contract, but memory stays whole."""
    state = one_sequence(4, 12, headway=9)
    table = torch.full((1, 20), 5)
    table[:, 6:] = UNWRITTEN
    state |= {"tokens": table[:, :6], "limit": int32([10**9])}
    for restart, known in ((False, 4), (True, 4), (True, 10**9)):
        tokens = run(kernels, state | {"restart": restart, "known": int32([known])})[0]
        assert (tokens[0, 6:] == UNWRITTEN).all()


def test_every_schedule(kernels):
    for restart in (False, True):
        rng, results = random.Random(11), {}
        state = random_state(rng, 45, 70, agree=0.95, settle=0.95) | {"restart": restart}
        for name, options in adversarial(seed=12).items():
            results[name] = run(kernels, state, **options)
        results["specification"] = specification(state)
        assert_same_everywhere(results)


@pytest.mark.slow
def test_sanitizers():
    script = f"""
import random
import {OP}_emulated as kernels
from tests.simt.test_{OP} import sweep
sweep(kernels, 13, 8)
"""
    done = run_sanitized(f"tests/simt/{OP}_emulated.cpp", script)
    assert done.returncode == 0, done.stderr
