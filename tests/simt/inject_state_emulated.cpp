// Runs inject_state_kernel in the emulator, dispatched as csrc/cuda/inject_state.cu does.
#include "rdkernels/kernels/inject_state.cuh"

#include "op_arguments.h"

namespace py = pybind11;

namespace {

py::dict run(const py::dict& values, int dtype, const py::kwargs& arguments) {
  op_arguments::Fields fields(values);
  InjectStateParams p{};
  p.state = fields.pointer<const void>("state");
  p.embed = fields.pointer<const void>("embed");
  p.previous_embed = fields.pointer<const void>("previous_embed");
  p.depth = fields.pointer<const int32_t>("depth");
  p.noise_weight = fields.pointer<const float>("noise_weight");
  p.row_keys = fields.pointer<const int32_t>("row_keys");
  p.adapter_input = fields.pointer<void>("adapter_input");
  p.mixed_embed = fields.pointer<void>("mixed_embed");
  p.rows = fields.integer("rows");
  p.width = fields.integer("width");
  p.state_stride = fields.integer("state_stride");
  p.embed_stride = fields.integer("embed_stride");
  p.previous_stride = fields.integer("previous_stride");
  p.key_stride = fields.integer("key_stride");
  p.adapter_stride = fields.integer("adapter_stride");
  p.mixed_stride = fields.integer("mixed_stride");
  p.momentum = fields.number("momentum");
  p.one_minus_momentum = fields.number("one_minus_momentum");
  p.noise_std = fields.number("noise_std");
  p.variance_preserving = fields.integer("variance_preserving") != 0;
  p.seed = fields.bits("seed");
  fields.check_all_used();

  const simt::Options options = simt_pybind::make_options(arguments);
  simt::Report report;
  op_arguments::check_code(
      rdk::launch_inject_state(p, dtype, [&](auto element, auto aligned, dim3 grid) -> int {
        report = simt::launch("inject_state", grid, dim3(rdk::kChunkThreads), 0, options, [&] {
          rdk::inject_state_kernel<decltype(element), decltype(aligned)::value>(p);
        });
        return kRdkSuccess;
      }));
  return simt_pybind::to_dict(report);
}

}  // namespace

PYBIND11_MODULE(inject_state_emulated, m) { m.def("run", &run); }
