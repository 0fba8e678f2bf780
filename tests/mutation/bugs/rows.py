"""Bugs in rms_norm, residual_norm, swiglu and exit_update: a row of a matrix each."""

from __future__ import annotations

from tests.mutation.bug import Bug, EmulatedTests

_NORMS = EmulatedTests("test_row_kernels.py", "row_kernels.cpp")
_HOSTILE = EmulatedTests("test_row_kernels_hostile.py", "row_kernels.cpp")
_EXIT = EmulatedTests("test_exit_update.py", "exit_update_emulated.cpp")

_RMS_NORM = (
    Bug(
        "rms_norm/no-epsilon",
        "arithmetic.h",
        "static_cast<float>(width) + eps)",
        "static_cast<float>(width) + 0.0f * eps)",
        "NaN from a row of zeros",
        _HOSTILE.only("test_hostile_values and 16 and float32"),
    ),
    Bug(
        "rms_norm/wide-rows-are-not-read-again",
        "rms_norm.cuh",
        "if (p.width > span)",
        "if (p.width > 2 * span)",
        "rows of two tiles: the last tile stands for both",
        _NORMS.only("test_rms_norm and 8200"),
    ),
    Bug(
        "rms_norm/stride-of-the-other-array",
        "rms_norm.cuh",
        "place.row * p.x_stride",
        "place.row * p.out_stride",
        "rows are read where the output has its own",
        _HOSTILE.only("test_every_array_has_a_stride"),
    ),
    Bug(
        "rms_norm/writes-one-chunk-too-many",
        "row_tile.cuh",
        "if (index < width) store_global_16",
        "if (index <= width) store_global_16",
        "16 bytes past the end of each row",
        _HOSTILE.only("test_rms_norm_unaligned or test_residual_norm_unaligned or test_swiglu"),
    ),
)

_RESIDUAL_NORM = (
    Bug(
        "residual_norm/sums-read-too-early",
        "row_tile.cuh",
        "  if (lane == 0) store_shared(warp_sums + warp, value);\n  __syncthreads();\n",
        "  if (lane == 0) store_shared(warp_sums + warp, value);\n",
        "a row's sum misses the warps that have not come yet",
        _HOSTILE.only("test_every_schedule and huginn-2600"),
    ),
    Bug(
        "residual_norm/sums-overwritten-too-early",
        "row_tile.cuh",
        "  __syncthreads();  // the next call writes warp_sums again\n",
        "",
        "the second sum overwrites the first while others read it",
        _HOSTILE.only("test_every_schedule and huginn-2600"),
    ),
    Bug(
        "residual_norm/norm-of-the-unrounded",
        "residual_norm.cuh",
        "tile.values[i] = rounded<T>(tile.values[i]);",
        "tile.values[i] += 0.0f;",
        "normed does not belong to the hidden that is stored",
        _NORMS.only("test_normed_is_the_norm_of_the_rounded_hidden"),
    ),
    Bug(
        "residual_norm/olmo-adds-twice",
        "residual_norm.cuh",
        "if (p.style != kRdkOlmo) add_residual(tile, first);",
        "add_residual(tile, first);",
        "the residual is part of the norm and added again",
        _NORMS.only("test_residual_norm and olmo and 64"),
    ),
    Bug(
        "residual_norm/wide-rows-are-not-read-again",
        "residual_norm.cuh",
        "if (!(normalises_input && row.one_tile))",
        "if (!normalises_input)",
        "rows of several tiles: the last tile stands for all",
        _NORMS.only("test_residual_norm_wider_than_a_tile"),
    ),
    Bug(
        "residual_norm/stride-of-the-other-array",
        "residual_norm.cuh",
        "place.row * p.normed_stride",
        "place.row * p.hidden_stride",
        "normed is written where hidden has its rows",
        _HOSTILE.only("test_every_array_has_a_stride"),
    ),
    Bug(
        "residual_norm/scalar-bound",
        "row_tile.cuh",
        "values[i] = offset < count ?",
        "values[i] = offset <= count ?",
        "an element past the end of the row is part of its sum",
        _HOSTILE.only("test_residual_norm_unaligned and delta"),
    ),
)

_SWIGLU = (
    Bug(
        "swiglu/gate-and-up-swapped",
        "swiglu.cuh",
        "gated(to_float(gates.elements[i]), to_float(ups.elements[i]))",
        "gated(to_float(ups.elements[i]), to_float(gates.elements[i]))",
        "the wrong half is the gate",
        _HOSTILE.only("test_swiglu_unaligned"),
    ),
    Bug(
        "swiglu/writes-one-chunk-too-many",
        "swiglu.cuh",
        "if (first >= p.width) return;",
        "if (first > p.width) return;",
        "16 bytes past the end of each row",
        _HOSTILE.only("test_swiglu_unaligned"),
    ),
    Bug(
        "swiglu/odd-width-taken-for-aligned",
        "chunk.cuh",
        "all_aligned<T>(arrays) && width % kChunkElements<T> == 0",
        "all_aligned<T>(arrays)",
        "16-byte accesses to a second half that is not aligned",
        _HOSTILE.only("test_swiglu_unaligned and odd"),
    ),
)

_EXIT_UPDATE = (
    Bug(
        "exit_update/exited-rows-count-on",
        "exit_update.cuh",
        "  if (active) store_global(p.depth + place.row",
        "  store_global(p.depth + place.row",
        "the depth of a row that is not computed increases",
        _EXIT.only("test_inactive_rows and 64"),
    ),
    Bug(
        "exit_update/exited-rows-converge",
        "exit_update.cuh",
        "active && delta < p.threshold",
        "delta < p.threshold",
        "rows that are not computed are reported as converged",
        _EXIT.only("test_inactive_rows and 64"),
    ),
    Bug(
        "exit_update/stride-of-the-other-array",
        "exit_update.cuh",
        "place.row * p.previous_state_stride",
        "place.row * p.state_stride",
        "states are compared with those of other rows",
        _EXIT.only("test_every_array_has_a_stride"),
    ),
    Bug(
        "exit_update/nan-converges",
        "exit_rule.h",
        "if (!(delta <= FLT_MAX)) return INFINITY;",
        "if (delta > FLT_MAX) return INFINITY;",
        "a change that cannot be measured is NaN, not infinite",
        _EXIT.only("test_hostile_values and float32"),
    ),
    Bug(
        "exit_update/equal-zero-states",
        "exit_rule.h",
        "  if (change == 0.0f) return 0.0f;\n",
        "",
        "0 / 0 where nothing has moved",
        _EXIT.only("test_values and float32 and -0-"),
    ),
    Bug(
        "exit_update/norm-of-one-warp",
        "exit_update.cuh",
        "    sums.before = row_sum(sums.before, place);\n",
        "",
        "cosine of a thread's share instead of the row's",
        _EXIT.only("test_values and bfloat16 and -264- and cosine"),
    ),
)

BUGS = (*_RMS_NORM, *_RESIDUAL_NORM, *_SWIGLU, *_EXIT_UPDATE)
