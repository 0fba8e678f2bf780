"""Bugs in the kernels of ``recurrent_attention``: both attention kernels and the split merge."""

from __future__ import annotations

from tests.mutation.bug import Bug, EmulatedTests

_TESTS = EmulatedTests("test_recurrent_attention.py", "recurrent_attention_emulated.cpp")
# Tensor cores, narrow tiles: sequences of 0 to 21 rows, exited rows, one and two splits.
_RAGGED = _TESTS.only("test_ragged_batch and bfloat16-64")
_RAGGED_96 = _TESTS.only("test_ragged_batch and bfloat16-96-interleaved")
_PLAIN = _TESTS.only("test_ragged_batch and float32-80")
_WIDE = _TESTS.only("test_prefill and 64")
_RACES = _TESTS.only("test_bits_do_not_depend_on_the_schedule and dtype0 and greedy")
_PLAIN_RACES = _TESTS.only("test_bits_do_not_depend_on_the_schedule and dtype2 and greedy")
_GROUPS = _TESTS.only("test_grouped_queries and bfloat16")
_SPLITS = _TESTS.only("test_forced_splits and bfloat16 and (-3 or -8)")

_PIPELINE = (
    Bug(
        "recurrent_attention/no-barrier-per-tile",
        "attention/recurrent_attention.cuh",
        "    __syncthreads();\n    copy_tile(tile + kStages - 1);",
        "    copy_tile(tile + kStages - 1);",
        "warps multiply with a tile that others have not finished",
        _RACES,
    ),
    Bug(
        "recurrent_attention/copy-before-barrier",
        "attention/recurrent_attention.cuh",
        "    __syncthreads();\n    copy_tile(tile + kStages - 1);",
        "    copy_tile(tile + kStages - 1);\n    __syncthreads();",
        "the next copy overwrites a stage that slower warps still read",
        _RACES,
    ),
    Bug(
        "recurrent_attention/waits-for-one-group-too-few",
        "attention/recurrent_attention.cuh",
        "cp_async_wait<kStages - 2>()",
        "cp_async_wait<kStages - 1>()",
        "a tile is used while its copy is on its way",
        _RACES,
    ),
    Bug(
        "recurrent_attention/no-empty-commit",
        "attention/recurrent_attention.cuh",
        "    cp_async_commit();  // an empty group",
        "    if (tile < num_tiles) cp_async_commit();  // an empty group",
        "waits count groups: the last tiles are not waited for",
        _RACES,
    ),
    Bug(
        "recurrent_attention/no-barrier-before-output",
        "attention/recurrent_attention.cuh",
        "  __syncthreads();  // the last tile",
        "  // the last tile",
        "outputs overwrite the last tile while others multiply with it",
        _RACES,
    ),
    Bug(
        "recurrent_attention/no-barrier-in-output",
        "attention/recurrent_attention.cuh",
        "  __syncthreads();\n\n  constexpr int kParts",
        "\n  constexpr int kParts",
        "warps are merged before they have left their results",
        _RACES,
    ),
    Bug(
        "recurrent_attention/no-barrier-after-queries",
        "attention/recurrent_attention.cuh",
        "  __syncthreads();\n#pragma unroll\n  for (int tile = 0",
        "#pragma unroll\n  for (int tile = 0",
        "the first copies read sources that are not written yet",
        _RACES,
    ),
    Bug(
        "recurrent_attention/sources-of-the-wrong-tile",
        "attention/recurrent_attention.cuh",
        "tile_begin + kStages * kPositions + threadIdx.x",
        "tile_begin + (kStages - 1) * kPositions + threadIdx.x",
        "from the fourth tile on, the one before is read again",
        _WIDE,
    ),
    Bug(
        "recurrent_attention/plain-no-barrier-after-load",
        "attention/plain.cuh",
        "    load_plain_tile<T>(tiles, p, work);\n    __syncthreads();",
        "    load_plain_tile<T>(tiles, p, work);",
        "scores are computed from a tile that is half loaded",
        _PLAIN_RACES,
    ),
)

_ARITHMETIC = (
    Bug(
        "recurrent_attention/mask-hides-the-row-itself",
        "attention/mma.cuh",
        "e % 2 > line_position",
        "e % 2 >= line_position",
        "causal mask off by one",
        _RAGGED,
    ),
    Bug(
        "recurrent_attention/mask-skipped-on-the-diagonal",
        "attention/recurrent_attention.cuh",
        "begin + kColumns - 1 > first_line_position",
        "begin + kColumns > first_line_position + kColumns",
        "tiles that cross the diagonal are not masked",
        _RAGGED,
    ),
    Bug(
        "recurrent_attention/plain-mask-hides-the-row-itself",
        "attention/plain.cuh",
        "begin + lane > line_position",
        "begin + lane >= line_position",
        "causal mask off by one, without tensor cores",
        _PLAIN,
    ),
    Bug(
        "recurrent_attention/fragment-order",
        "attention/mma.cuh",
        "mma_m16n8k16<T>(scores[2 * n], q[k], b[0], b[1]);",
        "mma_m16n8k16<T>(scores[2 * n], q[k], b[0], b[2]);",
        "halves of two different key fragments are multiplied",
        _RAGGED_96,
    ),
    Bug(
        "recurrent_attention/swizzle",
        "attention/tile.cuh",
        "(row & 1) << 2 | (row & 2) | (row & 4) >> 2",
        "(row & 7)",
        "right values, but copies of two rows meet in the same banks",
        _TESTS.only("test_no_bank_conflicts and (96 or 32)"),
    ),
    Bug(
        "recurrent_attention/half-rotary-angles",
        "attention/tile.cuh",
        "first + kHeadDim / 4 : first + 4",
        "first + 4 : first + 4",
        "the second chunk of an interleaved pair gets angles of the first",
        _RAGGED_96,
    ),
    Bug(
        "recurrent_attention/plain-rotary-partner",
        "rotary.h",
        "{i, i + head_dim / 2}",
        "{i, i + head_dim / 2 - 1}",
        "half convention rotates with the wrong partner",
        _PLAIN,
    ),
    Bug(
        "recurrent_attention/key-bias-of-the-first-head",
        "attention/tile.cuh",
        "p.num_heads + work.kv_head,\n",
        "p.num_heads,\n",
        "all KV heads get the bias of the first",
        _RAGGED_96,
    ),
    Bug(
        "recurrent_attention/softmax-base-of-nothing",
        "attention/mma.cuh",
        "return maximum == -INFINITY ? 0.0f : maximum;",
        "return maximum;",
        "NaN from a tile in which a line sees nothing",
        _RAGGED_96,
    ),
    Bug(
        "recurrent_attention/output-not-corrected",
        "attention/mma.cuh",
        "      acc.out[n][2 * i + 1] *= correction;\n",
        "",
        "every second column keeps the weights of an old maximum",
        _WIDE,
    ),
    Bug(
        "recurrent_attention/narrow-reach",
        "attention/recurrent_attention.cuh",
        "if (tile_begin + column < warp_reach)",
        "if (tile_begin + column + 16 < warp_reach)",
        "warps leave out their last columns",
        _RAGGED_96,
    ),
)

_ROWS = (
    Bug(
        "recurrent_attention/stale-own-rows",
        "attention/work.cuh",
        "return computed ? source",
        "return computed && position % 2 == 0 ? source",
        "active rows are read from the cache, where an earlier iteration's K/V are",
        _RAGGED_96,
    ),
    Bug(
        "recurrent_attention/exited-rows-are-recomputed",
        "attention/work.cuh",
        "position >= work.start && (p.active == nullptr || "
        "load_global(p.active + packed_row) != 0);",
        "position >= work.start;",
        "K/V of exited rows come from qkv and overwrite the cache",
        _RAGGED_96,
    ),
    Bug(
        "recurrent_attention/reads-one-position-too-many",
        "attention/work.cuh",
        "if (position >= work.end) return kNoSource;",
        "if (position > work.end) return kNoSource;",
        "a cell past the context, and a page past the sequence's last",
        _RAGGED_96,
    ),
    Bug(
        "recurrent_attention/every-tile-writes-the-cache",
        "attention/work.cuh",
        "return line >= 0 && line < work.num_lines;",
        "return line < work.num_lines;",
        "right values, but cells are written by several blocks",
        _TESTS.only("test_cells_are_written_once and bfloat16 and 1-"),
    ),
    Bug(
        "recurrent_attention/first-row-of-a-tile-not-cached",
        "attention/work.cuh",
        "return line >= 0 && line < work.num_lines;",
        "return line > 0 && line < work.num_lines;",
        "K/V of a tile's first row never reach the cache",
        _RAGGED_96,
    ),
    Bug(
        "recurrent_attention/page-layout",
        "attention/work.cuh",
        "int64_t{position % p.page_size} * p.num_kv_heads + work.kv_head",
        "int64_t{work.kv_head} * p.page_size + position % p.page_size",
        "cells of a page in the order of heads, not positions",
        _RAGGED_96,
    ),
    Bug(
        "recurrent_attention/page-stride",
        "attention/work.cuh",
        "page * p.cache_page_stride",
        "page * p.page_size * p.num_kv_heads * p.head_dim",
        "caches whose pages are apart are read at the wrong place",
        _TESTS.only("test_pages_apart and bfloat16"),
    ),
    Bug(
        "recurrent_attention/queries-of-the-first-sequence",
        "attention/tile.cuh",
        "(work.first_row + row) * p.qkv_stride",
        "int64_t{row} * p.qkv_stride",
        "every sequence asks with the rows of the first",
        _RAGGED_96,
    ),
    Bug(
        "recurrent_attention/values-with-grouped-queries",
        "attention/tile.cuh",
        "value = key + int64_t{p.num_kv_heads} * kHeadDim;",
        "value = key + int64_t{p.num_heads} * kHeadDim;",
        "values are read past the keys of all query heads",
        _GROUPS,
    ),
    Bug(
        "recurrent_attention/head-of-a-straddling-group",
        "attention/work.cuh",
        "kv_head * group + (first_line + line) % group",
        "kv_head * group + line % group",
        "heads are mixed up where a tile begins inside a group",
        _GROUPS,
    ),
    Bug(
        "recurrent_attention/active-mask-high-bit",
        "attention/work.cuh",
        ">> (63 - last)",
        ">> ((64 - last) & 63)",
        "the last row of a tile counts as exited",
        _WIDE,
    ),
    Bug(
        "recurrent_attention/exited-tile-leaves-its-output",
        "attention/recurrent_attention.cuh",
        "    store_global_16(out + i % kChunks * 8, make_uint4(0, 0, 0, 0));",
        "    (void)out;",
        "rows without output keep what was in memory",
        _TESTS.only("test_exited_batch_touches_nothing and bfloat16"),
    ),
    Bug(
        "recurrent_attention/sequence-search",
        "attention/work.cuh",
        "<= tile;\n    const int skipped",
        "< tile;\n    const int skipped",
        "a sequence's first tile goes to the sequence before",
        _RAGGED_96,
    ),
)

_SPLIT = (
    Bug(
        "recurrent_attention/last-split-forgotten",
        "attention/work.cuh",
        "(kv_tiles + p.splits - 1) / p.splits",
        "max(1, kv_tiles / p.splits)",
        "tiles that do not divide evenly are left out",
        _SPLITS,
    ),
    Bug(
        "recurrent_attention/empty-split-says-nothing",
        "attention/recurrent_attention.cuh",
        "store_global(partial_log_sum(p, index), -INFINITY);",
        "(void)index;",
        "the merge reads a log-sum that nobody wrote",
        _SPLITS,
    ),
    Bug(
        "recurrent_attention/merge-without-maximum",
        "attention/split_merge.cuh",
        "exp2f(log_sum - maximum)",
        "exp2f(log_sum)",
        "weights of splits overflow",
        _TESTS.only("test_scales and 40.0 and float16 and wide"),
    ),
    Bug(
        "recurrent_attention/merge-of-nothing",
        "attention/split_merge.cuh",
        "log_sum == -INFINITY ? 0.0f : exp2f",
        "exp2f",
        "NaN where no split has anything",
        _SPLITS,
    ),
    Bug(
        "recurrent_attention/merge-reads-empty-splits",
        "attention/split_merge.cuh",
        "share == 0.0f || i >= pairs",
        "i >= pairs",
        "0 times whatever the workspace held",
        _SPLITS,
    ),
)

BUGS = (*_PIPELINE, *_ARITHMETIC, *_ROWS, *_SPLIT)
