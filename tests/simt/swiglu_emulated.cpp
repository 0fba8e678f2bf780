// Runs swiglu_kernel in the emulator, dispatched as csrc/cuda/swiglu.cu does.
#include "rdkernels/swiglu.cuh"

#include "op_arguments.h"

namespace py = pybind11;

namespace {

py::dict run(const py::dict& values, int dtype, const py::kwargs& arguments) {
  op_arguments::Fields fields(values);
  SwigluParams p{};
  p.x = fields.pointer<const void>("x");
  p.out = fields.pointer<void>("out");
  p.rows = fields.integer("rows");
  p.width = fields.integer("width");
  p.x_stride = fields.integer("x_stride");
  p.out_stride = fields.integer("out_stride");
  fields.check_all_used();

  const simt::Options options = simt_pybind::make_options(arguments);
  simt::Report report;
  op_arguments::check_code(
      rdk::launch_swiglu(p, dtype, [&](auto element, auto aligned, dim3 grid) -> int {
        report = simt::launch("swiglu", grid, dim3(rdk::kSwigluThreads), 0, options, [&] {
          rdk::swiglu_kernel<decltype(element), decltype(aligned)::value>(p);
        });
        return kRdkSuccess;
      }));
  return simt_pybind::to_dict(report);
}

}  // namespace

PYBIND11_MODULE(swiglu_emulated, m) { m.def("run", &run); }
