// Runs the kernels of sample_tokens in the emulator, dispatched as csrc/cuda/sample_tokens.cu does.
#include "rdkernels/kernels/sample_tokens.cuh"

#include "op_arguments.h"

namespace py = pybind11;

namespace {

py::dict run(const py::dict& values, int dtype, const py::kwargs& arguments) {
  op_arguments::Fields fields(values);
  SampleTokensParams p{};
  p.logits = fields.pointer<const void>("logits");
  p.row_keys = fields.pointer<const int32_t>("row_keys");
  p.out = fields.pointer<int64_t>("out");
  p.rows = fields.integer("rows");
  p.vocabulary = fields.integer("vocabulary");
  p.logits_stride = fields.integer("logits_stride");
  p.key_stride = fields.integer("key_stride");
  p.seed = fields.bits("seed");
  p.top_k = fields.integer("top_k");
  p.temperature = fields.real("temperature");
  p.top_p = fields.number("top_p");
  p.min_p_offset = fields.number("min_p_offset");
  fields.check_all_used();

  const simt::Options options = simt_pybind::make_options(arguments);
  simt::Report report;
  op_arguments::check_code(rdk::launch_sample_tokens(
      p, dtype, [&](auto element, auto aligned, auto greedy, dim3 grid) -> int {
        using T = decltype(element);
        constexpr bool kAligned = decltype(aligned)::value;
        report = simt::launch("sample_tokens", grid, dim3(rdk::kSampleThreads), 0, options, [&] {
          if constexpr (decltype(greedy)::value) {
            rdk::greedy_tokens_kernel<T, kAligned>(p);
          } else {
            rdk::sample_tokens_kernel<T, kAligned>(p);
          }
        });
        return kRdkSuccess;
      }));
  return simt_pybind::to_dict(report);
}

}  // namespace

PYBIND11_MODULE(sample_tokens_emulated, m) { m.def("run", &run); }
