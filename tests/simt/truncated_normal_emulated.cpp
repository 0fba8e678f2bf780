// Runs truncated_normal_kernel in the emulator, dispatched as csrc/cuda/truncated_normal.cu does,
// and the functions of philox.h one by one.
#include "rdkernels/kernels/truncated_normal.cuh"

#include <algorithm>
#include <cmath>

#include "op_arguments.h"

namespace py = pybind11;

namespace {

py::dict run(const py::dict& values, int dtype, const py::kwargs& arguments) {
  op_arguments::Fields fields(values);
  TruncatedNormalParams p{};
  p.row_keys = fields.pointer<const int32_t>("row_keys");
  p.out = fields.pointer<void>("out");
  p.rows = fields.integer("rows");
  p.width = fields.integer("width");
  p.key_stride = fields.integer("key_stride");
  p.out_stride = fields.integer("out_stride");
  p.seed = fields.bits("seed");
  p.stream = static_cast<int>(fields.integer("stream"));
  p.std = fields.number("std");
  fields.check_all_used();

  const simt::Options options = simt_pybind::make_options(arguments);
  simt::Report report;
  op_arguments::check_code(
      rdk::launch_truncated_normal(p, dtype, [&](auto element, auto aligned, dim3 grid) -> int {
        report = simt::launch("truncated_normal", grid, dim3(rdk::kChunkThreads), 0, options, [&] {
          rdk::truncated_normal_kernel<decltype(element), decltype(aligned)::value>(p);
        });
        return kRdkSuccess;
      }));
  return simt_pybind::to_dict(report);
}

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
  m.def("run", &run);
  m.def("draws", &draws);
  m.attr("GUMBEL_ERROR") = rdk::kGumbelError;
  m.attr("SMALLEST_GUMBEL") = rdk::kSmallestGumbel;
  m.attr("LARGEST_GUMBEL") = rdk::kLargestGumbel;
}
