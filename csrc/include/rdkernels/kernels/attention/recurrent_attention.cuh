// recurrent_attention: attention of a wavefront over the KV cache that all iterations share, on
// tensor cores.
//
//            positions of one sequence, KV head h
//            0                         start       start + n    A block: one tile of query lines
//            |                           |             |        (row x head of the KV head's
//   lines    +------------+------------+-+-------------+        group), one KV head, one split of
//   tile 0   |  split 0   |  split 1   |   split 2\    |        the positions. K/V tiles of 64
//            |            |            |           \   |        positions flow through a ring of
//            +------------+------------+-+----------\--+        stages in shared memory:
//   tile 1   |            |            |             \ |
//            |            |            |              \|          copy    tile j + kStages - 1
//            +------------+------------+-+-------------+          finish  tile j: bias, rotation,
//            from the cache              | from qkv if                    cache write
//                                          active, else           attend  tile j: ldmatrix, mma
//                                          from the cache
//
// The launch does what usually takes five: it splits qkv, adds the bias, rotates, writes K/V to the
// cache and attends. What makes that safe in one launch is where K and V are read from.
// Those of the launch's own active rows are read from qkv, by every block that needs them, and
// rotated again; everything else (positions before `start`, and inactive rows, which keep the K/V
// of an earlier iteration) is read from the cache. The cells that the launch writes are thus the
// cells that nobody reads, and no block ever waits for another. Each cell is written by exactly one
// block (writes_cells_of), in passing, from the tile it has in shared memory anyway. The price is
// that each tile of lines rotates the keys of the wavefront again: nothing for a decoding
// wavefront; for a prefill about as many instructions per tile as the products themselves, which is
// why long prompts are best fed in chunks of a few hundred rows (all but the chunk's own then come
// rotated from the cache).
//
// Rows that have exited (inactive) are handled per tile and per warp: a tile without active rows
// ends before its first load of Q, K or V; positions after a tile's last active row are not loaded;
// a warp without active lines does no arithmetic.
//
// Every output is written exactly once. With one split that is done here, rows without output
// (inactive, or past cu_rows[B]) as zeros; with more, every block leaves a partial result for each
// of its lines (split_merge.cuh).
#pragma once

#include "rdkernels/kernels/attention/mma.cuh"
#include "rdkernels/kernels/attention/split_merge.cuh"
#include "rdkernels/kernels/attention/tile.cuh"
#include "rdkernels/kernels/attention/work.cuh"

namespace rdk {

// Four warps, kWarpsM along the lines, the rest along the positions of each K/V tile. kWarpsM = 1
// is the narrow shape: one m16 fragment of lines that all warps hold, 16 of 64 positions each,
// merged at the end. kWarpsM = 4 is the wide one.
template <int kHeadDim, int kWarpsM>
struct AttentionShape {
  static constexpr int kThreads = 128;
  static constexpr int kWarpsN = 4 / kWarpsM;
  static constexpr int kLines = 16 * kWarpsM;
  static constexpr int kPositions = kTilePositions;
  static constexpr int kColumns = kPositions / kWarpsN;  // of a warp
  // Narrow tiles compute little and wait for memory: two tiles are on their way while one is in
  // use. Wide ones have the arithmetic of 64 lines to hide the next tile behind, and one more block
  // per SM is worth more to them than a third stage.
  static constexpr int kStages = kWarpsM == 1 ? 3 : 2;
  static constexpr int kTile = kPositions * kHeadDim;  // elements of a K or V tile
  static constexpr int kTileBytes = kStages * 2 * kTile * 2;
  static constexpr int kSharedBytes =
      kTileBytes + kStages * kPositions * static_cast<int>(sizeof(Source));
  // Outputs are exchanged through the memory of the tiles. 8 floats more than a head per line:
  // accumulator stores (4 lines x 8 columns per half warp) then fall into 32 different banks.
  static constexpr int kOutPitch = kHeadDim + 8;
  static constexpr int kOutBytes = kWarpsN * kLines * (kOutPitch + 2) * 4;
  static_assert(kLines * kHeadDim <= kTile, "the query tile lies in the last stage");
  static_assert(kOutBytes <= kTileBytes);
};

// A tile or split with nothing to attend to.
template <class T, int kHeadDim>
RDK_DEVICE void store_no_output(const RecurrentAttentionParams& p, const AttentionWork& work) {
  if (p.splits > 1) {
    for (int line = threadIdx.x; line < work.num_lines; line += blockDim.x) {
      const int row = work.first_row + work.row_of(line);
      const int64_t index = partial_index(p, blockIdx.z, row, work.head_of(line));
      store_global(partial_log_sum(p, index), -INFINITY);
    }
    return;
  }
  constexpr int kChunks = kHeadDim / 8;
  for (int i = threadIdx.x; i < work.num_lines * kChunks; i += blockDim.x) {
    const int line = i / kChunks;
    const int64_t row = work.first_row + work.row_of(line);
    T* out = static_cast<T*>(p.out) + (row * p.num_heads + work.head_of(line)) * kHeadDim;
    store_global_16(out + i % kChunks * 8, make_uint4(0, 0, 0, 0));
  }
}

// Merges what the warps along the positions have accumulated for one line: 4 columns from `column`
// on. Returns the log of the line's sum of weights, -inf if it attended to nothing.
template <class Shape>
RDK_DEVICE float merge_warps(float4& out, const float* outs, const float2* stats, int line,
                             int column) {
  float maximum = -INFINITY;
#pragma unroll
  for (int w = 0; w < Shape::kWarpsN; ++w) {
    maximum = fmaxf(maximum, load_shared(stats + w * Shape::kLines + line).x);
  }
  const float base = softmax_base(maximum);
  float sum = 0.0f;
  out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
  for (int w = 0; w < Shape::kWarpsN; ++w) {
    const int at = w * Shape::kLines + line;
    const float2 maximum_sum = load_shared(stats + at);
    const float weight = exp2_approx(maximum_sum.x - base);
    const float* from = outs + at * Shape::kOutPitch + column;
    const float4 part = load_shared(reinterpret_cast<const float4*>(from));
    sum += weight * maximum_sum.y;
    out.x += weight * part.x;
    out.y += weight * part.y;
    out.z += weight * part.z;
    out.w += weight * part.w;
  }
  const float scale = sum > 0.0f ? 1.0f / sum : sum;  // 0 stays 0, NaN stays NaN
  out = make_float4(out.x * scale, out.y * scale, out.z * scale, out.w * scale);
  return sum == 0.0f ? -INFINITY : maximum + log2_approx(sum);
}

// The accumulators of all warps to their outputs, or, with splits, to the workspace.
template <class T, int kHeadDim, class Shape>
RDK_DEVICE void store_output(unsigned char* shared, Accumulator<kHeadDim>& acc, int warp_m,
                             int warp_n, const RecurrentAttentionParams& p,
                             const AttentionWork& work) {
  float* const outs = reinterpret_cast<float*>(shared);  // [kWarpsN][kLines][kOutPitch]
  float2* const stats =                                  // [kWarpsN][kLines]: maximum, sum
      reinterpret_cast<float2*>(outs + Shape::kWarpsN * Shape::kLines * Shape::kOutPitch);
  const int lane = threadIdx.x % 32;
  acc.finish();
  __syncthreads();  // the last tile is no longer in use
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = warp_n * Shape::kLines + warp_m * 16 + lane / 4 + 8 * i;
    if (lane % 4 == 0) store_shared(stats + at, make_float2(acc.maximum[i], acc.sum[i]));
    float* const to = outs + at * Shape::kOutPitch + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      store_shared(reinterpret_cast<float2*>(to + n * 8),
                   make_float2(acc.out[n][2 * i], acc.out[n][2 * i + 1]));
    }
  }
  __syncthreads();

  constexpr int kParts = kHeadDim / 4;
  for (int i = threadIdx.x; i < work.num_lines * kParts; i += Shape::kThreads) {
    const int line = i / kParts, column = i % kParts * 4;
    const int row = work.row_of(line), head = work.head_of(line);
    const int64_t packed_row = work.first_row + row;
    float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float log_sum = -INFINITY;
    if (work.is_active(row)) log_sum = merge_warps<Shape>(out, outs, stats, line, column);
    if (p.splits == 1) {
      T* to = static_cast<T*>(p.out) + (packed_row * p.num_heads + head) * kHeadDim + column;
      store_global(reinterpret_cast<uint2*>(to),
                   make_uint2(pack2<T>(out.x, out.y), pack2<T>(out.z, out.w)));
      continue;
    }
    const int64_t index = partial_index(p, blockIdx.z, static_cast<int>(packed_row), head);
    if (column == 0) store_global(partial_log_sum(p, index), log_sum);
    if (log_sum != -INFINITY) {
      store_global(reinterpret_cast<float4*>(partial_out(p, index) + column), out);
    }
  }
}

// One warp against its columns of the tile that starts at position `tile_begin`.
template <class T, int kHeadDim, int kColumns>
RDK_DEVICE void attend(Accumulator<kHeadDim>& acc, const uint32_t (&q)[kHeadDim / 16][4],
                       const T* keys, const T* values, int tile_begin, int column,
                       const int (&line_position)[2], int first_line_position, float scale) {
  float scores[kColumns / 8][4];
  multiply_keys<kHeadDim, kColumns, T>(scores, q, keys, column);
  const int begin = tile_begin + column;
  if (begin + kColumns - 1 > first_line_position) {
    scale_scores<true>(scores, scale, begin, line_position);
  } else {
    scale_scores<false>(scores, scale, begin, line_position);
  }
  update_softmax(scores, acc);
  multiply_values<kHeadDim, kColumns / 8, T>(acc, scores, values, column);
}

// Grid: (tiles of lines, KV heads, splits); see RecurrentAttentionPlan. p.splits is gridDim.z.
template <class T, int kHeadDim, int kWarpsM>
__global__ void __launch_bounds__(128)
    recurrent_attention_kernel(const RecurrentAttentionParams p) {
  using Shape = AttentionShape<kHeadDim, kWarpsM>;
  constexpr int kStages = Shape::kStages, kPositions = Shape::kPositions;
  constexpr int kThreads = Shape::kThreads;
  RDK_DYNAMIC_SHARED(shared);
  T* const tiles = reinterpret_cast<T*>(shared);  // [kStages][K, V][kPositions][kHeadDim]
  Source* const sources = reinterpret_cast<Source*>(shared + Shape::kTileBytes);  // [kStages][64]

  const AttentionWork work = find_work<Shape::kLines, kPositions>(p);
  if (work.num_lines <= 0) return;
  if (work.begin >= work.end) {
    store_no_output<T, kHeadDim>(p, work);
    return;
  }
  const int num_tiles = (work.end - work.begin + kPositions - 1) / kPositions;
  const auto keys = [&](int tile) { return tiles + tile % kStages * 2 * Shape::kTile; };
  const auto values = [&](int tile) { return keys(tile) + Shape::kTile; };
  const auto tile_sources = [&](int tile) { return sources + tile % kStages * kPositions; };
  const auto copy_tile = [&](int tile) {
    if (tile < num_tiles) {
      copy_keys_values<T, kHeadDim, kPositions, kThreads>(keys(tile), values(tile),
                                                          tile_sources(tile), p, work);
    }
    cp_async_commit();  // an empty group too: waits count groups
  };

  // The sources of the first tiles, and the queries, in the stage that is filled last.
  for (int i = threadIdx.x; i < kStages * kPositions; i += kThreads) {
    store_shared(sources + i, find_source(p, work, work.begin + i));
  }
  T* const query_tile = keys(kStages - 1);
  load_queries<T, kHeadDim, Shape::kLines, kThreads>(query_tile, p, work);
  __syncthreads();
#pragma unroll
  for (int tile = 0; tile < kStages - 1; ++tile) copy_tile(tile);

  const int warp_m = threadIdx.x / 32 % kWarpsM, warp_n = threadIdx.x / 32 / kWarpsM;
  const int line = warp_m * 16 + threadIdx.x % 32 / 4;  // this lane's lines: line and line + 8
  const int line_position[2] = {work.start + work.row_of(line), work.start + work.row_of(line + 8)};
  const int first_line_position = work.start + work.row_of(warp_m * 16);
  const int warp_reach = work.reach(warp_m * 16, 16), column = warp_n * Shape::kColumns;
  const float scale = p.scale * 1.44269504f;  // log2(e)
  uint32_t q[kHeadDim / 16][4];
  load_query_fragments<kHeadDim>(q, query_tile, warp_m * 16);
  Accumulator<kHeadDim> acc;
  acc.clear();

  for (int tile = 0; tile < num_tiles; ++tile) {
    const int tile_begin = work.begin + tile * kPositions;
    cp_async_wait<kStages - 2>();
    if (tile_begin + kPositions > work.start) {
      finish_keys<T, kHeadDim, kPositions, kThreads>(keys(tile), values(tile), tile_sources(tile),
                                                     p, work);
    }
    // The one barrier per tile. Behind it this tile is complete, and all warps are done with the
    // one before, whose stage the next copy takes, and with this tile's sources, whose place those
    // of tile + kStages take.
    __syncthreads();
    copy_tile(tile + kStages - 1);
    // Looked up before the arithmetic and stored after it: the page table's latency is hidden.
    Source later = kNoSource;
    if (threadIdx.x < kPositions) {
      later = find_source(p, work, tile_begin + kStages * kPositions + threadIdx.x);
    }
    if (tile_begin + column < warp_reach) {
      attend<T, kHeadDim, Shape::kColumns>(acc, q, keys(tile), values(tile), tile_begin, column,
                                           line_position, first_line_position, scale);
    }
    if (threadIdx.x < kPositions) store_shared(tile_sources(tile) + threadIdx.x, later);
  }
  store_output<T, kHeadDim, Shape>(shared, acc, warp_m, warp_n, p, work);
}

}  // namespace rdk
