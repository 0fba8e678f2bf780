// Runs carry_rows_kernel in the emulator, dispatched as csrc/cuda/carry_rows.cu does.
#include "rdkernels/kernels/carry_rows.cuh"

#include "op_arguments.h"

namespace py = pybind11;

namespace {

py::dict run(const py::dict& values, int dtype, const py::kwargs& arguments) {
  op_arguments::Fields fields(values);
  CarryRowsParams p{};
  p.state = fields.pointer<const void>("state");
  p.embed = fields.pointer<const void>("embed");
  p.source_row = fields.pointer<const int32_t>("source_row");
  p.row_keys = fields.pointer<const int32_t>("row_keys");
  p.row_count = fields.pointer<const int32_t>("row_count");
  p.next_state = fields.pointer<void>("next_state");
  p.next_embed = fields.pointer<void>("next_embed");
  p.num_rows = fields.integer("num_rows");
  p.rows = fields.integer("rows");
  p.width = fields.integer("width");
  p.state_stride = fields.integer("state_stride");
  p.embed_stride = fields.integer("embed_stride");
  p.key_stride = fields.integer("key_stride");
  p.next_state_stride = fields.integer("next_state_stride");
  p.next_embed_stride = fields.integer("next_embed_stride");
  p.seed = fields.bits("seed");
  p.std = fields.number("std");
  p.continuous = fields.integer("continuous") != 0;
  fields.check_all_used();

  const simt::Options options = simt_pybind::make_options(arguments);
  simt::Report report;
  op_arguments::check_code(
      rdk::launch_carry_rows(p, dtype, [&](auto element, auto aligned, dim3 grid) -> int {
        report = simt::launch("carry_rows", grid, dim3(rdk::kChunkThreads), 0, options, [&] {
          rdk::carry_rows_kernel<decltype(element), decltype(aligned)::value>(p);
        });
        return kRdkSuccess;
      }));
  return simt_pybind::to_dict(report);
}

}  // namespace

PYBIND11_MODULE(carry_rows_emulated, m) { m.def("run", &run); }
