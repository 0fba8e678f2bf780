// Kernels that exercise every facility of rdkernels/ptx.cuh. nvcc must accept them too:
// test_emulator.py compiles them for sm_80 and sm_90a.
#pragma once

#include "rdkernels/kernels/ptx.cuh"

namespace selftest {

using rdk::bf16;
using rdk::half;

enum class Warp {
  kShfl,
  kXor,
  kUp,
  kDown,
  kBallot,
  kAny,
  kAll,
  kAdd,
  kMin,
  kMax,
  kAnd,
  kOr,
  kBitXor
};

// out[i] = op(in[i]), in each lane of `mask`; other lanes keep out of it.
template <class T>
__global__ void shuffle_kernel(Warp op, uint32_t mask, const T* in, T* out, const int* argument,
                               int width) {
  const int i = threadIdx.x, lane = i % 32;
  if (!(mask >> lane & 1)) return;
  const T value = in[i];
  switch (op) {
    case Warp::kShfl:
      out[i] = __shfl_sync(mask, value, argument[i], width);
      break;
    case Warp::kXor:
      out[i] = __shfl_xor_sync(mask, value, argument[0], width);
      break;
    case Warp::kUp:
      out[i] = __shfl_up_sync(mask, value, argument[0], width);
      break;
    case Warp::kDown:
      out[i] = __shfl_down_sync(mask, value, argument[0], width);
      break;
    default:
      break;
  }
}

template <class T>
__global__ void vote_kernel(Warp op, uint32_t mask, const T* in, T* out) {
  const int i = threadIdx.x, lane = i % 32;
  if (!(mask >> lane & 1)) return;
  const T value = in[i];
  switch (op) {
    case Warp::kBallot:
      out[i] = static_cast<T>(__ballot_sync(mask, value != 0));
      break;
    case Warp::kAny:
      out[i] = __any_sync(mask, value != 0);
      break;
    case Warp::kAll:
      out[i] = __all_sync(mask, value != 0);
      break;
    case Warp::kAdd:
      out[i] = __reduce_add_sync(mask, value);
      break;
    case Warp::kMin:
      out[i] = __reduce_min_sync(mask, value);
      break;
    case Warp::kMax:
      out[i] = __reduce_max_sync(mask, value);
      break;
    case Warp::kAnd:
      out[i] = static_cast<T>(__reduce_and_sync(mask, static_cast<unsigned>(value)));
      break;
    case Warp::kOr:
      out[i] = static_cast<T>(__reduce_or_sync(mask, static_cast<unsigned>(value)));
      break;
    case Warp::kBitXor:
      out[i] = static_cast<T>(__reduce_xor_sync(mask, static_cast<unsigned>(value)));
      break;
    default:
      break;
  }
}

// Two groups of lanes in different collectives at the same time, which the masks allow.
__global__ void split_warp_kernel(int* out) {
  const int lane = threadIdx.x;
  if (lane < 12) {
    out[lane] = __shfl_xor_sync(0xFFFu, lane, 1);
  } else {
    out[lane] = static_cast<int>(__ballot_sync(~0xFFFu, lane % 2));
  }
  __syncwarp();
  out[lane] += __shfl_sync(~0u, out[lane], 0);
}

// Reverses the block's values through shared memory; without the barrier that is a race.
template <bool kSync>
__global__ void reverse_kernel(const float* in, float* out) {
  RDK_DYNAMIC_SHARED(raw);
  float* values = reinterpret_cast<float*>(raw);
  const int i = threadIdx.x, n = blockDim.x;
  const int64_t base = static_cast<int64_t>(blockIdx.x) * n;
  rdk::store_shared(&values[i], rdk::load_global(in + base + i));
  if (kSync) __syncthreads();
  rdk::store_global(out + base + i, rdk::load_shared(&values[n - 1 - i]));
}

// The same within a warp, with __syncwarp or without, in two static arrays.
template <bool kSync>
__global__ void reverse_warp_kernel(const float* in, float* out) {
  RDK_SHARED(float, first, 32);
  RDK_SHARED(float, second, 32);
  const int i = threadIdx.x;
  rdk::store_shared(&first[i], in[32 * blockIdx.x + i]);
  if (kSync) __syncwarp();
  rdk::store_shared(&second[i], rdk::load_shared(&first[31 - i]));
  if (kSync) __syncwarp();
  out[32 * blockIdx.x + i] = rdk::load_shared(&second[i ^ 1]);
}

__global__ void barrier_votes_kernel(const int* in, int* out) {
  const int i = threadIdx.x, n = blockDim.x;
  for (int round = 0; round < 2; ++round) {
    const int predicate = in[i] > round;
    out[(round * 3 + 0) * n + i] = __syncthreads_count(predicate);
    out[(round * 3 + 1) * n + i] = __syncthreads_or(predicate);
    out[(round * 3 + 2) * n + i] = __syncthreads_and(predicate);
  }
}

// Copies kGroups rows of one float4 per thread; looks at all of them after waiting for all but
// kLeft groups (out[0..]), then again after waiting for everything (out[kGroups..]). Row r is
// copied for real when valid[r].
template <int kGroups, int kLeft>
__global__ void async_copy_kernel(const float4* in, const int* valid, float4* out) {
  RDK_DYNAMIC_SHARED(raw);
  float4* rows = reinterpret_cast<float4*>(raw);
  const int i = threadIdx.x, n = blockDim.x;
  for (int group = 0; group < kGroups; ++group) {
    rdk::cp_async_16(&rows[group * n + i], &in[group * n + i], valid[group] != 0);
    rdk::cp_async_commit();
  }
  rdk::cp_async_wait<kLeft>();
  __syncthreads();
  for (int group = 0; group < kGroups; ++group) {
    out[group * n + i] = rdk::load_shared(&rows[group * n + n - 1 - i]);
  }
  __syncthreads();  // nobody's copies may complete before everybody has looked
  rdk::cp_async_wait<0>();
  __syncthreads();
  for (int group = 0; group < kGroups; ++group) {
    out[(kGroups + group) * n + i] = rdk::load_shared(&rows[group * n + n - 1 - i]);
  }
}

__global__ void narrow_async_copy_kernel(const unsigned char* in, unsigned char* out) {
  RDK_DYNAMIC_SHARED(raw);
  const int i = threadIdx.x;
  rdk::cp_async_4(raw + 4 * i, in + 4 * i);
  rdk::cp_async_8(raw + 128 + 8 * i, in + 128 + 8 * i);
  rdk::cp_async_wait_all();
  __syncthreads();
  for (int byte = i; byte < 384; byte += 32) out[byte] = rdk::load_shared(raw + byte);
}

template <int kCount, bool kTranspose>
RDK_DEVICE void load_matrices(uint32_t (&r)[kCount], const void* row) {
  if constexpr (kCount == 1) kTranspose ? rdk::ldmatrix_x1_trans(r, row) : rdk::ldmatrix_x1(r, row);
  if constexpr (kCount == 2) kTranspose ? rdk::ldmatrix_x2_trans(r, row) : rdk::ldmatrix_x2(r, row);
  if constexpr (kCount == 4) kTranspose ? rdk::ldmatrix_x4_trans(r, row) : rdk::ldmatrix_x4(r, row);
}

// in: [32, 8] b16, rows of four 8x8 matrices, put into shared memory `stride` bytes apart. out:
// [32, kCount].
template <int kCount, bool kTranspose>
__global__ void ldmatrix_kernel(const uint4* in, uint32_t* out, int stride) {
  RDK_DYNAMIC_SHARED(raw);
  const int lane = threadIdx.x;
  rdk::store_shared_16(raw + lane * stride, rdk::load_global_16(in + lane));
  __syncwarp();
  uint32_t r[kCount];
  load_matrices<kCount, kTranspose>(r, raw + lane % (8 * kCount) * stride);
  for (int i = 0; i < kCount; ++i) out[lane * kCount + i] = r[i];
}

// d[16, 8] = c + a[16, 16] b[16, 8], row-major: a through ldmatrix, b through ldmatrix.trans.
template <class T>
__global__ void mma_kernel(const T* a, const T* b, const float* c, float* d) {
  RDK_DYNAMIC_SHARED(raw);
  T* left = reinterpret_cast<T*>(raw);
  T* right = left + 16 * 16;
  const int lane = threadIdx.x;
  rdk::store_shared_16(left + lane * 8, rdk::load_global_16(a + lane * 8));
  if (lane < 16) rdk::store_shared_16(right + lane * 8, rdk::load_global_16(b + lane * 8));
  __syncwarp();
  uint32_t af[4], bf[2];
  rdk::ldmatrix_x4(af, left + lane % 16 * 16 + lane / 16 * 8);
  rdk::ldmatrix_x2_trans(bf, right + lane % 16 * 8);
  float acc[4];
  const int row = lane / 4, col = lane % 4 * 2;
  for (int i = 0; i < 4; ++i) acc[i] = c[(row + i / 2 * 8) * 8 + col + i % 2];
  rdk::mma_m16n8k16<T>(acc, af, bf[0], bf[1]);
  for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 8 + col + i % 2] = acc[i];
}

template <class T>
__global__ void pack_kernel(const float* in, uint32_t* packed, float* out) {
  const int i = threadIdx.x;
  packed[i] = rdk::pack2<T>(in[2 * i], in[2 * i + 1]);
  const float2 pair = rdk::unpack2<T>(packed[i]);
  out[2 * i] = pair.x;
  out[2 * i + 1] = pair.y;
}

// Lane i writes, then reads V at byte i * stride + offset of shared memory.
template <class V>
__global__ void bank_kernel(int stride, V* out) {
  RDK_DYNAMIC_SHARED(raw);
  V value;
  memset(&value, 0, sizeof value);
  V* place = reinterpret_cast<V*>(raw + threadIdx.x * stride);
  rdk::store_shared(place, value);
  __syncwarp();
  out[threadIdx.x] = rdk::load_shared(place);
}

__global__ void async_bank_kernel(int stride, const uint4* in) {
  RDK_DYNAMIC_SHARED(raw);
  rdk::cp_async_16(raw + threadIdx.x * stride, in + threadIdx.x);
  rdk::cp_async_commit();
  rdk::cp_async_wait<0>();
}

// Lane i copies element `rounds` times: reads at offset + i * stride, writes the mirror image.
template <class V>
__global__ void sector_kernel(const V* in, V* out, int offset, int stride, int rounds) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int round = 0; round < rounds; ++round) {
    const V value = rdk::load_global(in + offset + static_cast<int64_t>(i) * stride);
    rdk::store_global(out + offset + static_cast<int64_t>(i) * stride, value);
  }
}

// Lanes drop out of a loop one after the other, then all meet and read one line together.
__global__ void ragged_kernel(const float* in, float* out) {
  const int lane = threadIdx.x;
  float sum = 0.0f;
  for (int j = 0; j <= lane; ++j) sum += rdk::load_global(in + j);
  __syncwarp();
  out[lane] = sum + rdk::load_global(in + lane);
}

struct AtomicResults {
  int add_int, max_int, min_int, swapped;
  unsigned add_unsigned, ticket, bits;
  unsigned long long add_long;
  float add_float;
  int last_blocks;
};

// Every thread of the grid updates every field; the last block to arrive is the only one to see the
// last ticket.
__global__ void atomics_kernel(AtomicResults* r) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&r->add_int, i);
  atomicMax(&r->max_int, i);
  atomicMin(&r->min_int, -i);
  atomicCAS(&r->swapped, i, i + 1);
  atomicAdd(&r->add_unsigned, 2u);
  atomicOr(&r->bits, 1u << i % 32);
  atomicAdd(&r->add_long, 1ull << 40);
  atomicAdd(&r->add_float, 0.5f);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    if (atomicInc(&r->ticket, gridDim.x - 1) == gridDim.x - 1) atomicAdd(&r->last_blocks, 1);
  }
}

// The classic lost update: correct only when blocks run one after the other.
__global__ void lost_update_kernel(int* counter) {
  const int value = rdk::load_global(counter);
  rdk::store_global(counter, value + 1);
}

__global__ void poison_kernel(float* out) {
  RDK_DYNAMIC_SHARED(raw);
  RDK_SHARED(bf16, values, 64);
  const int i = threadIdx.x;
  out[2 * i] = rdk::load_shared(reinterpret_cast<float*>(raw) + i);
  out[2 * i + 1] = rdk::to_float(rdk::load_shared(&values[i]));
  rdk::store_shared(reinterpret_cast<float*>(raw) + i, 1.0f);  // must not reach the next block
}

__global__ void fast_math_kernel(const float* in, float* out, int n) {
  const int i = threadIdx.x;
  out[0 * n + i] = rdk::exp2_approx(in[i]);
  out[1 * n + i] = rdk::log2_approx(in[i]);
  out[2 * n + i] = rdk::rcp_approx(in[i]);
  out[3 * n + i] = rdk::rsqrt_approx(in[i]);
  out[4 * n + i] = rsqrtf(in[i]);
  out[5 * n + i] = __expf(in[i]);
  out[6 * n + i] = __logf(in[i]);
  out[7 * n + i] = __fdividef(1.0f, in[i]);
  out[8 * n + i] = __uint_as_float(__float_as_uint(in[i]));
}

__global__ void bits_kernel(const unsigned* in, unsigned* out, int n) {
  const int i = threadIdx.x;
  out[0 * n + i] = __umulhi(in[i], 0x9E3779B9u);
  out[1 * n + i] = __popc(in[i]);
  out[2 * n + i] = __clz(static_cast<int>(in[i]));
  out[3 * n + i] = __ffs(static_cast<int>(in[i]));
  out[4 * n + i] = __brev(in[i]);
}

}  // namespace selftest
