"""Bugs in advance_wavefront."""

from __future__ import annotations

from tests.mutation.bug import Bug, EmulatedTests

_TESTS = EmulatedTests("test_advance_wavefront.py", "advance_wavefront_emulated.cpp")
_PREFIX = _TESTS.only("test_ends_of_the_prefix and (33 or 64)")
_RANDOM = _TESTS.only("test_random_states")
_RACES = _TESTS.only("test_every_schedule")

BUGS = (
    Bug(
        "advance_wavefront/stop-token-that-is-not-committed",
        "advance_wavefront.cuh",
        "first_last < first_blocked",
        "first_last <= first_blocked",
        "a sequence ends at a stop token that may still change",
        _PREFIX,
    ),
    Bug(
        "advance_wavefront/prefix-within-32-rows",
        "advance_wavefront.cuh",
        "return {base + first_blocked, false};",
        "return {first_blocked, false};",
        "long prefixes commit too little",
        _PREFIX,
    ),
    Bug(
        "advance_wavefront/limit-one-late",
        "wavefront.h",
        "return start + j + 2 >= limit;",
        "return start + j + 1 >= limit;",
        "a sequence does not end when its tokens are used up",
        _PREFIX,
    ),
    Bug(
        "advance_wavefront/depth-of-an-uncommitted-token",
        "advance_wavefront.cuh",
        "if (j < commit.count) store_global(committed_depth",
        "if (j <= commit.count) store_global(committed_depth",
        "a depth is recorded for a token that is not final",
        _PREFIX,
    ),
    Bug(
        "advance_wavefront/one-draft-too-many",
        "advance_wavefront.cuh",
        "next.fresh > 1 ? next.fresh - 1 : 0",
        "next.fresh",
        "a token past the front is overwritten",
        _RANDOM,
    ),
    Bug(
        "advance_wavefront/rows-summed-too-early",
        "advance_wavefront.cuh",
        "advance_sequence(p, b);\n  __syncthreads();\n",
        "advance_sequence(p, b);\n",
        "the prefix sum misses sequences that are not done",
        _RACES,
    ),
    Bug(
        "advance_wavefront/sources-looked-up-too-early",
        "advance_wavefront.cuh",
        "  if (warp == 0) sum_next_rows(p);\n  __syncthreads();",
        "  if (warp == 0) sum_next_rows(p);",
        "source rows are searched in bounds that are not there yet",
        _RANDOM,
    ),
    Bug(
        "advance_wavefront/no-carry-after-32-sequences",
        "advance_wavefront.cuh",
        "    total += __shfl_sync(0xFFFFFFFFu, sum, 31);\n",
        "",
        "the 33rd sequence starts at row 0 again",
        _RANDOM,
    ),
    Bug(
        "advance_wavefront/source-forgets-what-was-committed",
        "advance_wavefront.cuh",
        "load_global(p.cu_rows + sequence) + load_global(p.committed + sequence) +",
        "load_global(p.cu_rows + sequence) +",
        "rows continue the states of rows that are committed",
        _RANDOM,
    ),
    Bug(
        "advance_wavefront/finished-sequences-come-back",
        "advance_wavefront.cuh",
        "  if (rows.count == 0) return;\n",
        "",
        "done is cleared for sequences without rows",
        _RANDOM,
    ),
    Bug(
        "advance_wavefront/writes-past-the-table",
        "advance_wavefront.cuh",
        "    if (position >= p.max_length) break;\n",
        "",
        "drafts past the table of tokens",
        _TESTS.only("test_a_limit_past_the_table"),
    ),
    Bug(
        "advance_wavefront/owner-of-a-first-row",
        "wavefront.h",
        "if (bound(middle) <= row)",
        "if (bound(middle) < row)",
        "the first row of a sequence goes to the one before",
        _RANDOM,
    ),
)
