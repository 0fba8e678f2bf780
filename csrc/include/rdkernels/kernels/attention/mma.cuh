// One warp's arithmetic: 16 query lines against kColumns positions of a K/V tile,
// FlashAttention-2's online softmax.
//
// Fragments of mma.m16n8k16: lane 4 g + t holds, of every 16 x 8 accumulator tile, lines g
// (elements 0, 1) and g + 8 (elements 2, 3) at columns 2 t and 2 t + 1. Scores become weights in
// registers: two neighbouring accumulator tiles are one 16 x 16 operand of the second product.
#pragma once

#include "rdkernels/kernels/attention/tile.cuh"
#include "rdkernels/kernels/ptx.cuh"

namespace rdk {

// The running softmax of a lane's two lines. Scores are in units of log 2, so that a weight is
// 2^(score - maximum).
template <int kHeadDim>
struct Accumulator {
  float out[kHeadDim / 8][4];
  float maximum[2];
  float sum[2];  // of this lane's columns only, until finish()

  RDK_DEVICE void clear() {
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) out[n][0] = out[n][1] = out[n][2] = out[n][3] = 0.0f;
    maximum[0] = maximum[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
  }

  RDK_DEVICE void finish() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i] += __shfl_xor_sync(~0u, sum[i], 1);
      sum[i] += __shfl_xor_sync(~0u, sum[i], 2);
    }
  }
};

// What weights are relative to: the maximum, or 0 while no position has been seen (-inf - -inf
// would be NaN).
RDK_DEVICE float softmax_base(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

// The warp's queries as A operands, kept in registers for the whole loop.
template <int kHeadDim, class T>
RDK_DEVICE void load_query_fragments(uint32_t (&q)[kHeadDim / 16][4], const T* tile,
                                     int first_line) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    ldmatrix_x4(q[k], tile + chunk_offset<kHeadDim>(first_line + lane % 16, 2 * k + lane / 16));
  }
}

// scores = q k^T for positions first_position + [0, kColumns) of the tile. Rows of K are columns of
// k^T: plain ldmatrix.
template <int kHeadDim, int kColumns, class T>
RDK_DEVICE void multiply_keys(float (&scores)[kColumns / 8][4],
                              const uint32_t (&q)[kHeadDim / 16][4], const T* keys,
                              int first_position) {
  const int lane = threadIdx.x % 32;
  const int row = first_position + lane / 16 * 8 + lane % 8, chunk = lane / 8 % 2;
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) {
    scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
  }
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      uint32_t b[4];
      ldmatrix_x4(b, keys + chunk_offset<kHeadDim>(row + n * 16, 2 * k + chunk));
      mma_m16n8k16<T>(scores[2 * n], q[k], b[0], b[1]);
      mma_m16n8k16<T>(scores[2 * n + 1], q[k], b[2], b[3]);
    }
  }
}

// Scales to units of log 2. With kMasked, hides the positions after each line's own, which includes
// those without a source.
template <bool kMasked, int kTiles>
RDK_DEVICE void scale_scores(float (&scores)[kTiles][4], float scale, int first_position,
                             const int (&line_position)[2]) {
  const int column = first_position + threadIdx.x % 4 * 2;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool hidden = kMasked && column + n * 8 + e % 2 > line_position[e / 2];
      scores[n][e] = hidden ? -INFINITY : scores[n][e] * scale;
    }
  }
}

// Turns scores into weights relative to the new maximum and brings what has been accumulated to
// that maximum.
template <int kHeadDim, int kTiles>
RDK_DEVICE void update_softmax(float (&scores)[kTiles][4], Accumulator<kHeadDim>& acc) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {  // lines g and g + 8
    float maximum = acc.maximum[i];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      maximum = fmaxf(maximum, fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
    }
    maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 1));
    maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, 2));
    const float base = softmax_base(maximum);
    const float correction = exp2_approx(acc.maximum[i] - base);
    acc.maximum[i] = maximum;
    acc.sum[i] *= correction;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      acc.out[n][2 * i] *= correction;
      acc.out[n][2 * i + 1] *= correction;
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 2 * i; e < 2 * i + 2; ++e) {
        scores[n][e] = exp2_approx(scores[n][e] - base);
        acc.sum[i] += scores[n][e];
      }
    }
  }
}

// out += weights v. Rows of V are the inner dimension: transposing ldmatrix.
template <int kHeadDim, int kTiles, class T>
RDK_DEVICE void multiply_values(Accumulator<kHeadDim>& acc, const float (&weights)[kTiles][4],
                                const T* values, int first_position) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kTiles / 2; ++k) {
    const float (&left)[4] = weights[2 * k];
    const float (&right)[4] = weights[2 * k + 1];
    const uint32_t a[4] = {pack2<T>(left[0], left[1]), pack2<T>(left[2], left[3]),
                           pack2<T>(right[0], right[1]), pack2<T>(right[2], right[3])};
    const int row = first_position + k * 16 + lane % 16;
#pragma unroll
    for (int n = 0; n < kHeadDim / 16; ++n) {
      uint32_t b[4];
      ldmatrix_x4_trans(b, values + chunk_offset<kHeadDim>(row, 2 * n + lane / 16));
      mma_m16n8k16<T>(acc.out[2 * n], a, b[0], b[1]);
      mma_m16n8k16<T>(acc.out[2 * n + 1], a, b[2], b[3]);
    }
  }
}

}  // namespace rdk
