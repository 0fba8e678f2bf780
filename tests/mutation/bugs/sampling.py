"""Bugs in sample_tokens."""

from __future__ import annotations

from tests.mutation.bug import Bug, EmulatedTests

_TESTS = EmulatedTests("test_sample_tokens.py", "sample_tokens_emulated.cpp")
_RACES = _TESTS.only("test_every_schedule")
_TOP_K = _TESTS.only("test_top_k_around and bfloat16")
_KEPT = _TESTS.only("test_sampling and bfloat16 and not huginn")

BUGS = (
    Bug(
        "sample_tokens/one-token-too-many",
        "logits_row.cuh",
        "higher < limit;",
        "higher <= limit;",
        "top-k keeps k + 1",
        _TOP_K,
    ),
    Bug(
        "sample_tokens/columns-read-too-early",
        "logits_row.cuh",
        "  __syncthreads();  // all columns are written\n",
        "",
        "weights of threads that are still counting are missing",
        _RACES,
    ),
    Bug(
        "sample_tokens/sums-read-too-early",
        "logits_row.cuh",
        "  if (lane == 0) store_shared(sums + digit, sum);\n  __syncthreads();\n",
        "  if (lane == 0) store_shared(sums + digit, sum);\n",
        "the search sees the sums of the digit before",
        _RACES,
    ),
    Bug(
        "sample_tokens/maximum-read-too-early",
        "logits_row.cuh",
        "store_shared(maxima + threadIdx.x / 32, largest);\n  __syncthreads();\n",
        "store_shared(maxima + threadIdx.x / 32, largest);\n",
        "the largest logit of the warps that have come",
        _RACES,
    ),
    Bug(
        "sample_tokens/best-read-too-early",
        "sample_tokens.cuh",
        "    store_shared(tokens + warp, best.token);\n  }\n  __syncthreads();\n",
        "    store_shared(tokens + warp, best.token);\n  }\n",
        "the best token of the warps that have come",
        _RACES,
    ),
    Bug(
        "sample_tokens/ties-to-the-highest-id",
        "sample_tokens.cuh",
        "other.token < token",
        "other.token > token",
        "equal logits: not the lowest id",
        _TESTS.only("test_ties"),
    ),
    Bug(
        "sample_tokens/bar-too-high",
        "sample_tokens.cuh",
        "bar = static_cast<float>(score) - slack",
        "bar = static_cast<float>(score) + 1.0f",
        "tokens that win by less than 1 are thrown away",
        _KEPT,
    ),
    Bug(
        "sample_tokens/top-p-drops-the-last",
        "sample_tokens.cuh",
        "mass(x) >= least_mass",
        "mass(x) > least_mass",
        "the token that completes the mass is lost",
        _KEPT,
    ),
    Bug(
        "sample_tokens/min-p-ignored",
        "sample_tokens.cuh",
        "fmaxf(largest + p.min_p_offset, largest - reach)",
        "largest - reach",
        "unlikely tokens are kept",
        _KEPT,
    ),
    Bug(
        "sample_tokens/draw-of-another-token",
        "sample_tokens.cuh",
        "static_cast<uint32_t>(token / kWordsPerBlock)",
        "static_cast<uint32_t>(token)",
        "noise of a channel that belongs to another token",
        _KEPT,
    ),
    Bug(
        "sample_tokens/noise-changes-with-the-step",
        "sample_tokens.cuh",
        "/*step=*/0",
        "/*step=*/load_global(row_key + 2)",
        "a row's token never settles",
        _KEPT,
    ),
    Bug(
        "sample_tokens/nan-is-a-number",
        "logits_row.cuh",
        "return x == x ? x : -INFINITY;",
        "return x;",
        "NaN counts among the k largest",
        _TESTS.only("test_nan_takes_no_place"),
    ),
)
