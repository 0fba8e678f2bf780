// truncated_normal_kernel in the emulator, and the functions of philox.h one by one.
#include "rdkernels/kernels/truncated_normal.cuh"

#include <algorithm>
#include <cmath>

#include "emulated_op.h"

namespace {

// Writes truncated_normal (out[0]) and approximate_gumbel (out[1]) of bits i << 8, for i in
// [first, first + count): one value for each of the 2^24 uniform draws. float out[2][count].
void draws(uint32_t first, int64_t count, uintptr_t out) {
  float* values = reinterpret_cast<float*>(out);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = (first + static_cast<uint32_t>(i)) << 8;
    values[i] = rdk::truncated_normal(bits);
    values[count + i] = rdk::approximate_gumbel(bits);
  }
}

}  // namespace

PYBIND11_MODULE(truncated_normal_emulated, m) {
  RDK_EMULATED_RUN(m, "run", truncated_normal, TruncatedNormalParams);
  m.def("draws", &draws);
  m.attr("GUMBEL_ERROR") = rdk::kGumbelError;
  m.attr("SMALLEST_GUMBEL") = rdk::kSmallestGumbel;
  m.attr("LARGEST_GUMBEL") = rdk::kLargestGumbel;
}
