// Runs the recurrent_attention kernels in the emulator, planned and dispatched as
// csrc/cuda/recurrent_attention.cu does. Tensors are given by address: the test keeps them alive.
#include <pybind11/pybind11.h>

#include "rdkernels/api.h"
#include "rdkernels/kernels/attention/plain.cuh"
#include "rdkernels/kernels/attention/recurrent_attention.cuh"
#include "simt_pybind.h"

namespace py = pybind11;
using namespace rdk;

namespace {

template <class T>
T* pointer(const py::dict& fields, const char* name) {
  return reinterpret_cast<T*>(fields[name].cast<uintptr_t>());
}

RecurrentAttentionParams make_params(const py::dict& fields) {
  RecurrentAttentionParams p{};
  p.qkv = pointer<const void>(fields, "qkv");
  p.qk_bias = pointer<const void>(fields, "qk_bias");
  p.cos_sin = pointer<const float>(fields, "cos_sin");
  p.key_cache = pointer<void>(fields, "key_cache");
  p.value_cache = pointer<void>(fields, "value_cache");
  p.page_table = pointer<const int32_t>(fields, "page_table");
  p.cu_rows = pointer<const int32_t>(fields, "cu_rows");
  p.start = pointer<const int32_t>(fields, "start");
  p.active = pointer<const uint8_t>(fields, "active");
  p.out = pointer<void>(fields, "out");
  p.workspace = pointer<void>(fields, "workspace");
  p.qkv_stride = fields["qkv_stride"].cast<int64_t>();
  p.cache_page_stride = fields["cache_page_stride"].cast<int64_t>();
  p.page_table_stride = fields["page_table_stride"].cast<int64_t>();
  p.num_rows = fields["num_rows"].cast<int>();
  p.num_sequences = fields["num_sequences"].cast<int>();
  p.num_heads = fields["num_heads"].cast<int>();
  p.num_kv_heads = fields["num_kv_heads"].cast<int>();
  p.head_dim = fields["head_dim"].cast<int>();
  p.page_size = fields["page_size"].cast<int>();
  p.max_pages = fields["max_pages"].cast<int>();
  p.interleaved = fields["interleaved"].cast<int>();
  p.splits = fields["splits"].cast<int>();
  p.scale = fields["scale"].cast<float>();
  return p;
}

struct Emulated {
  const RecurrentAttentionParams& params;  // splits as planned
  const RecurrentAttentionPlan& plan;
  const simt::Options& options;

  dim3 grid() const {
    return dim3(static_cast<unsigned>(plan.tiles), params.num_kv_heads, plan.splits);
  }

  template <class T, int kHeadDim, int kWarpsM>
  simt::Report attend() const {
    using Shape = AttentionShape<kHeadDim, kWarpsM>;
    return simt::launch("recurrent_attention", grid(), dim3(Shape::kThreads), Shape::kSharedBytes,
                        options, [&] { recurrent_attention_kernel<T, kHeadDim, kWarpsM>(params); });
  }

  template <class T, int kHeadDim>
  simt::Report attend() const {
    return plan.lines == kWideLines ? attend<T, kHeadDim, 4>() : attend<T, kHeadDim, 1>();
  }

  template <class T>
  simt::Report attend_plain() const {
    return simt::launch("plain_recurrent_attention", grid(), dim3(kPlainThreads),
                        plain_shared_bytes(params.head_dim), options,
                        [&] { plain_recurrent_attention_kernel<T>(params); });
  }

  template <class T>
  simt::Report merge() const {
    const int64_t outputs = int64_t{params.num_rows} * params.num_heads;
    return simt::launch("recurrent_attention_merge",
                        dim3(static_cast<unsigned>(ceil_div(outputs, kMergeThreads / 32))),
                        dim3(kMergeThreads), 0, options,
                        [&] { recurrent_attention_merge_kernel<T>(params); });
  }

  template <class T>
  py::dict run() const {
    py::dict reports;
    reports["attention"] = simt_pybind::to_dict(attention<T>());
    if (params.splits > 1) reports["merge"] = simt_pybind::to_dict(merge<T>());
    return reports;
  }

 private:
  template <class T>
  simt::Report attention() const {
    if constexpr (sizeof(T) == 2) {
      if (plan.tensor_cores) {
        switch (params.head_dim) {
          case 32:
            return attend<T, 32>();
          case 64:
            return attend<T, 64>();
          case 96:
            return attend<T, 96>();
          case 128:
            return attend<T, 128>();
        }
      }
    }
    return attend_plain<T>();
  }
};

// {"tensor_cores": ..., "lines": ..., "splits": ..., "tiles": ..., "workspace_bytes": ...}
py::dict plan(const py::dict& fields, int dtype) {
  const RecurrentAttentionPlan chosen = plan_recurrent_attention(make_params(fields), dtype);
  py::dict d;
  d["tensor_cores"] = chosen.tensor_cores;
  d["lines"] = chosen.lines;
  d["splits"] = chosen.splits;
  d["tiles"] = chosen.tiles;
  d["workspace_bytes"] = chosen.workspace_bytes;
  return d;
}

// Runs one launch and returns the reports of its kernels; none if there is no row.
py::dict run(const py::dict& fields, int dtype, const py::kwargs& arguments) {
  RecurrentAttentionParams params = make_params(fields);
  if (params.num_rows == 0) return py::dict();  // nothing is launched
  const RecurrentAttentionPlan chosen = plan_recurrent_attention(params, dtype);
  params.splits = chosen.splits;
  const simt::Options options = simt_pybind::make_options(arguments);
  const Emulated emulated{params, chosen, options};
  switch (dtype) {
    case kRdkFloat32:
      return emulated.run<float>();
    case kRdkBFloat16:
      return emulated.run<bf16>();
    case kRdkFloat16:
      return emulated.run<half>();
    default:
      throw py::value_error("unknown dtype");
  }
}

}  // namespace

PYBIND11_MODULE(recurrent_attention_emulated, m) {
  m.def("plan", &plan);
  m.def("run", &run);
  m.def("is_supported", [](const py::dict& fields) { return is_supported(make_params(fields)); });
  m.def("choose_splits", &choose_splits);
}
