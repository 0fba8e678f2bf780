// Runs exit_update_kernel in the emulator, dispatched as csrc/cuda/exit_update.cu does.
#include "rdkernels/kernels/exit_update.cuh"

#include "op_arguments.h"

namespace py = pybind11;

namespace {

py::dict run(const py::dict& values, int dtype, const py::kwargs& arguments) {
  op_arguments::Fields fields(values);
  ExitUpdateParams p{};
  p.state = fields.pointer<const void>("state");
  p.previous_state = fields.pointer<const void>("previous_state");
  p.active = fields.pointer<const uint8_t>("active");
  p.depth = fields.pointer<int32_t>("depth");
  p.delta = fields.pointer<float>("delta");
  p.converged = fields.pointer<uint8_t>("converged");
  p.rows = fields.integer("rows");
  p.width = fields.integer("width");
  p.state_stride = fields.integer("state_stride");
  p.previous_stride = fields.integer("previous_stride");
  p.iterations = static_cast<int32_t>(fields.integer("iterations"));
  p.threshold = fields.number("threshold");
  p.criterion = static_cast<int>(fields.integer("criterion"));
  fields.check_all_used();

  const simt::Options options = simt_pybind::make_options(arguments);
  simt::Report report;
  op_arguments::check_code(rdk::launch_exit_update(
      p, dtype, [&](auto element, auto chunks, auto aligned, dim3 grid, dim3 block) -> int {
        using T = decltype(element);
        constexpr int kChunks = decltype(chunks)::value;
        constexpr bool kAligned = decltype(aligned)::value;
        report = simt::launch("exit_update", grid, block, 0, options,
                              [&] { rdk::exit_update_kernel<T, kChunks, kAligned>(p); });
        return kRdkSuccess;
      }));
  return simt_pybind::to_dict(report);
}

}  // namespace

PYBIND11_MODULE(exit_update_emulated, m) { m.def("run", &run); }
