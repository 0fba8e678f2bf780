// Runs rms_norm_kernel in the emulator, dispatched as csrc/cuda/rms_norm.cu does.
#include "rdkernels/rms_norm.cuh"

#include "op_arguments.h"
#include "rdkernels/dispatch.cuh"

namespace py = pybind11;

namespace {

py::dict run(const py::dict& values, int dtype, const py::kwargs& arguments) {
  op_arguments::Fields fields(values);
  RmsNormParams p{};
  p.x = fields.pointer<const void>("x");
  p.weight = fields.pointer<const void>("weight");
  p.out = fields.pointer<void>("out");
  p.rows = fields.integer("rows");
  p.width = fields.integer("width");
  p.x_stride = fields.integer("x_stride");
  p.out_stride = fields.integer("out_stride");
  p.eps = fields.number("eps");
  fields.check_all_used();

  const simt::Options options = simt_pybind::make_options(arguments);
  simt::Report report;
  op_arguments::check_code(rdk::launch_rows(
      p.rows, p.width, dtype, {{p.x, p.x_stride}, {p.weight, 0}, {p.out, p.out_stride}},
      [&](auto element, auto chunks, auto aligned, dim3 grid, dim3 block) -> int {
        using T = decltype(element);
        constexpr int kChunks = decltype(chunks)::value;
        constexpr bool kAligned = decltype(aligned)::value;
        report = simt::launch("rms_norm", grid, block, 0, options,
                              [&] { rdk::rms_norm_kernel<T, kChunks, kAligned>(p); });
        return kRdkSuccess;
      }));
  return simt_pybind::to_dict(report);
}

}  // namespace

PYBIND11_MODULE(rms_norm_emulated, m) { m.def("run", &run); }
