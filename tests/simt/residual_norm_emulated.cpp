// Runs residual_norm_kernel in the emulator, dispatched as csrc/cuda/residual_norm.cu does.
#include "rdkernels/residual_norm.cuh"

#include "op_arguments.h"
#include "rdkernels/dispatch.cuh"

namespace py = pybind11;

namespace {

py::dict run(const py::dict& values, int dtype, const py::kwargs& arguments) {
  op_arguments::Fields fields(values);
  ResidualNormParams p{};
  p.delta = fields.pointer<const void>("delta");
  p.residual = fields.pointer<const void>("residual");
  p.post_weight = fields.pointer<const void>("post_weight");
  p.pre_weight = fields.pointer<const void>("pre_weight");
  p.hidden = fields.pointer<void>("hidden");
  p.normed = fields.pointer<void>("normed");
  p.rows = fields.integer("rows");
  p.width = fields.integer("width");
  p.delta_stride = fields.integer("delta_stride");
  p.residual_stride = fields.integer("residual_stride");
  p.hidden_stride = fields.integer("hidden_stride");
  p.normed_stride = fields.integer("normed_stride");
  p.eps = fields.number("eps");
  p.style = static_cast<int>(fields.integer("style"));
  fields.check_all_used();

  const simt::Options options = simt_pybind::make_options(arguments);
  simt::Report report;
  op_arguments::check_code(rdk::launch_rows(
      p.rows, p.width, dtype,
      {{p.delta, p.delta_stride},
       {p.residual, p.residual_stride},
       {p.post_weight, 0},
       {p.pre_weight, 0},
       {p.hidden, p.hidden_stride},
       {p.normed, p.normed_stride}},
      [&](auto element, auto chunks, auto aligned, dim3 grid, dim3 block) -> int {
        using T = decltype(element);
        constexpr int kChunks = decltype(chunks)::value;
        constexpr bool kAligned = decltype(aligned)::value;
        report = simt::launch("residual_norm", grid, block, 0, options,
                              [&] { rdk::residual_norm_kernel<T, kChunks, kAligned>(p); });
        return kRdkSuccess;
      }));
  return simt_pybind::to_dict(report);
}

}  // namespace

PYBIND11_MODULE(residual_norm_emulated, m) { m.def("run", &run); }
