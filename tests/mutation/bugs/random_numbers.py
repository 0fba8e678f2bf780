"""Bugs in truncated_normal, the generator behind it, and inject_state."""

from __future__ import annotations

from tests.mutation.bug import Bug, EmulatedTests

_DRAWS = EmulatedTests("test_truncated_normal.py", "truncated_normal_emulated.cpp")
_VALUES = _DRAWS.only("test_values and (8 or 37)")
_INJECT = EmulatedTests("test_inject_state.py", "inject_state_emulated.cpp")
_MIXED = _INJECT.only("test_values")

_TRUNCATED_NORMAL = (
    Bug(
        "truncated_normal/second-block-repeats",
        "chunk.cuh",
        "(first + i) / kWordsPerBlock",
        "first / kWordsPerBlock",
        "16 bytes of bf16 hold the same four draws twice",
        _VALUES,
    ),
    Bug(
        "truncated_normal/words-swapped",
        "chunk.cuh",
        "word % 2 == 0 ? even : odd",
        "word % 2 == 0 ? odd : even",
        "the scalar path draws other numbers than the vector path",
        _VALUES,
    ),
    Bug(
        "truncated_normal/width-taken-for-aligned",
        "chunk.cuh",
        "all_aligned<T>(arrays) && width % kChunkElements<T> == 0",
        "all_aligned<T>(arrays)",
        "whole chunks are written past the end of a row",
        _VALUES,
    ),
    Bug(
        "truncated_normal/nine-rounds",
        "philox.h",
        "round < 10",
        "round < 9",
        "another generator",
        _VALUES,
    ),
    Bug(
        "truncated_normal/step-runs-into-the-stream",
        "philox.h",
        "(static_cast<uint32_t>(step) & kStepMask)",
        "static_cast<uint32_t>(step)",
        "large steps draw from another stream",
        _VALUES,
    ),
    Bug(
        "truncated_normal/high-seed-ignored",
        "philox.h",
        "static_cast<uint32_t>(seed >> 32)",
        "static_cast<uint32_t>(seed >> 63)",
        "seeds that differ in the high word draw the same",
        _DRAWS.only("test_seeds"),
    ),
    Bug(
        "truncated_normal/writes-one-chunk-too-many",
        "truncated_normal.cuh",
        "if (first >= p.width) return;",
        "if (first > p.width) return;",
        "draws past the end of each row",
        _VALUES,
    ),
)

_INJECT_STATE = (
    Bug(
        "inject_state/noise-of-the-initial-states",
        "inject_state.cuh",
        "kStreamStateNoise",
        "kStreamInitialState",
        "wrong random stream: noise repeats the initial state",
        _MIXED,
    ),
    Bug(
        "inject_state/fresh-rows-have-a-past",
        "inject_state.cuh",
        "load_global(p.depth + row) > 0",
        "load_global(p.depth + row) >= 0",
        "new rows are mixed with an embedding that does not exist",
        _MIXED,
    ),
    Bug(
        "inject_state/embedding-over-state",
        "inject_state.cuh",
        "embed.store(adapter + p.width);",
        "embed.store(adapter);",
        "the adapter gets the embedding in place of the state",
        _MIXED,
    ),
    Bug(
        "inject_state/writes-one-chunk-too-many",
        "inject_state.cuh",
        "if (first >= p.width) return;",
        "if (first > p.width) return;",
        "16 bytes past the end of each row",
        _MIXED,
    ),
    Bug(
        "inject_state/momentum-swapped",
        "inject_state.cuh",
        "p.momentum * before + p.one_minus_momentum * now",
        "p.momentum * now + p.one_minus_momentum * before",
        "the past counts for what the present should",
        _MIXED,
    ),
    Bug(
        "inject_state/stride-of-the-other-array",
        "inject_state.cuh",
        "row * p.previous_embed_stride",
        "row * p.state_stride",
        "rows are mixed with the past of other rows",
        _INJECT.only("test_every_array_has_a_stride"),
    ),
    Bug(
        "inject_state/key-of-the-first-row",
        "inject_state.cuh",
        "p.row_keys + row * p.row_keys_stride",
        "p.row_keys + 0 * row * p.row_keys_stride",
        "all rows get the same noise",
        _MIXED,
    ),
    Bug(
        "inject_state/variance-lost",
        "inject_state.cuh",
        "kept_share(weight, p.variance_preserving)",
        "kept_share(weight, false)",
        "states shrink under noise that should keep their size",
        _MIXED,
    ),
)

BUGS = (*_TRUNCATED_NORMAL, *_INJECT_STATE)
