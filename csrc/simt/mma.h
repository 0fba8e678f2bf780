// Tensor-core instructions: ldmatrix and mma.m16n8k16, with the register layouts of the PTX manual.
#pragma once

#include <array>
#include <cstdint>

#include "rdkernels/kernels/numeric.h"
#include "warp.h"

namespace simt {

// Throws unless `row` is the address of 16 bytes of shared memory.
void check_matrix_row(const void* row, const Site& site);

// Lane i < 8 * kCount gives the address of row i % 8 of matrix i / 8 (8 rows of 8 b16). Lane l
// receives, of each matrix, elements (l / 4, 2 * (l % 4)) and the one to its right; transposed: (2
// * (l % 4), l / 4) and the one below.
template <int kCount, bool kTranspose>
void ldmatrix(uint32_t (&registers)[kCount], const void* row, const Site& site) {
  Thread& thread = current();
  Counters& counters = thread.block->counters;
  const bool count_banks = thread.block->launch.options.count_memory;
  if (thread.lane < 8 * kCount) check_matrix_row(row, site);
  using Out = std::array<uint32_t, kCount>;
  const auto compute = [&counters, count_banks](const Lanes<const void*, Out>& lanes) {
    ++counters.totals.ldmatrix;
    WarpAccess access;
    for (unsigned lane = 0; lane < 8 * kCount; ++lane) {
      access.lanes |= 1u << lane;
      access.address[lane] = reinterpret_cast<uintptr_t>(lanes.in(lane));
    }
    if (count_banks) counters.add_banks(counters.totals.ldmatrix_load, access, 16);
    for (unsigned lane = 0; lane < 32; ++lane) {
      for (unsigned matrix = 0; matrix < kCount; ++matrix) {
        uint32_t packed = 0;
        for (unsigned half = 0; half < 2; ++half) {
          const unsigned major = lane / 4, minor = lane % 4 * 2 + half;
          const unsigned r = kTranspose ? minor : major, c = kTranspose ? major : minor;
          const auto* address = static_cast<const unsigned char*>(lanes.in(8 * matrix + r));
          uint16_t element;
          std::memcpy(&element, address + 2 * c, 2);
          packed |= uint32_t{element} << (16 * half);
        }
        lanes.out(lane)[matrix] = packed;
      }
    }
  };
  const Out out =
      full_warp_collective<Out>(kTranspose ? "ldmatrix.trans" : "ldmatrix", site, row, compute);
  for (int i = 0; i < kCount; ++i) registers[i] = out[i];
}

// The operands of one lane of mma.m16n8k16.
struct MmaFragment {
  uint32_t a[4];
  uint32_t b[2];
  float d[4];
};

// d[16][8] += a[16][16] * b[16][8]; products are exact in fp32 and added in the order of k.
template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  const Site& site) {
  using Out = std::array<float, 4>;
  Counters& counters = current().block->counters;
  const auto element = [](uint32_t packed, int half) {
    return rdk::to_float(rdk::bit_cast<T>(static_cast<uint16_t>(packed >> (16 * half))));
  };
  const auto compute = [&](const Lanes<MmaFragment, Out>& lanes) {
    ++counters.totals.mma;
    float left[16][16], right[16][8], product[16][8] = {};
    for (int lane = 0; lane < 32; ++lane) {
      const MmaFragment& fragment = lanes.in(lane);
      const int group = lane / 4, pair = lane % 4 * 2;
      for (int half = 0; half < 2; ++half) {
        // a: register 0 upper left 8x8, 1 lower left, 2 upper right, 3 lower right
        for (int i = 0; i < 4; ++i) {
          left[group + 8 * (i & 1)][pair + half + 8 * (i >> 1)] = element(fragment.a[i], half);
        }
        for (int i = 0; i < 2; ++i)
          right[pair + half + 8 * i][group] = element(fragment.b[i], half);
      }
    }
    for (int m = 0; m < 16; ++m) {
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 8; ++n) product[m][n] += left[m][k] * right[k][n];
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, pair = lane % 4 * 2;
      for (int i = 0; i < 4; ++i) {
        lanes.out(lane)[i] = lanes.in(lane).d[i] + product[group + 8 * (i >> 1)][pair + (i & 1)];
      }
    }
  };
  const MmaFragment fragment{{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
  const char* name = std::is_same_v<T, rdk::bf16> ? "mma.m16n8k16.bf16" : "mma.m16n8k16.f16";
  const Out out = full_warp_collective<Out>(name, site, fragment, compute);
  for (int i = 0; i < 4; ++i) d[i] = out[i];
}

}  // namespace simt
