// Runs advance_wavefront_kernel in the emulator, in the shape of csrc/cuda/advance_wavefront.cu.
#include "rdkernels/kernels/advance_wavefront.cuh"

#include "op_arguments.h"

namespace py = pybind11;

namespace {

py::dict run(const py::dict& values, const py::kwargs& arguments) {
  op_arguments::Fields fields(values);
  AdvanceWavefrontParams p{};
  p.tokens = fields.pointer<int64_t>("tokens");
  p.start = fields.pointer<int32_t>("start");
  p.done = fields.pointer<uint8_t>("done");
  p.committed_depth = fields.pointer<int32_t>("committed_depth");
  p.sampled = fields.pointer<const int64_t>("sampled");
  p.settled = fields.pointer<const uint8_t>("settled");
  p.depth = fields.pointer<const int32_t>("depth");
  p.cu_rows = fields.pointer<const int32_t>("cu_rows");
  p.limit = fields.pointer<const int32_t>("limit");
  p.known = fields.pointer<const int32_t>("known");
  p.sequence_ids = fields.pointer<const int32_t>("sequence_ids");
  p.stop_tokens = fields.pointer<const int64_t>("stop_tokens");
  p.next_cu_rows = fields.pointer<int32_t>("next_cu_rows");
  p.source_row = fields.pointer<int32_t>("source_row");
  p.committed = fields.pointer<int32_t>("committed");
  p.row_tokens = fields.pointer<int64_t>("row_tokens");
  p.row_keys = fields.pointer<int32_t>("row_keys");
  p.num_rows = fields.integer("num_rows");
  p.capacity = fields.integer("capacity");
  p.max_length = fields.integer("max_length");
  p.tokens_stride = fields.integer("tokens_stride");
  p.committed_depth_stride = fields.integer("committed_depth_stride");
  p.key_stride = fields.integer("key_stride");
  p.num_stop_tokens = fields.integer("num_stop_tokens");
  p.headway = fields.integer("headway");
  p.max_wavefront = fields.integer("max_wavefront");
  p.num_sequences = static_cast<int>(fields.integer("num_sequences"));
  p.restart = fields.integer("restart") != 0;
  fields.check_all_used();

  const simt::Options options = simt_pybind::make_options(arguments);
  return simt_pybind::to_dict(
      simt::launch("advance_wavefront", dim3(1), dim3(rdk::kAdvanceThreads), 0, options,
                   [&] { rdk::advance_wavefront_kernel<rdk::kAdvanceThreads>(p); }));
}

}  // namespace

PYBIND11_MODULE(advance_wavefront_emulated, m) { m.def("run", &run); }
