// Runs the recurrent_attention kernels in the emulator, planned and dispatched as
// csrc/cuda/recurrent_attention.cu does.
#include "emulated_op.h"
#include "rdkernels/kernels/attention/plain.cuh"
#include "rdkernels/kernels/attention/recurrent_attention.cuh"
#include "rdkernels/kernels/dtypes.h"

namespace py = pybind11;
using namespace rdk;

namespace {

RecurrentAttentionParams make_params(const py::bytes& bytes) {
  return emulated_op::from_bytes<RecurrentAttentionParams>(bytes);
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
py::dict plan(const py::bytes& bytes, int dtype) {
  const RecurrentAttentionPlan chosen = plan_recurrent_attention(make_params(bytes), dtype);
  py::dict d;
  d["tensor_cores"] = chosen.tensor_cores;
  d["lines"] = chosen.lines;
  d["splits"] = chosen.splits;
  d["tiles"] = chosen.tiles;
  d["workspace_bytes"] = chosen.workspace_bytes;
  return d;
}

// Runs one launch and returns the reports of its kernels; none if there is no row.
py::dict run(const py::bytes& bytes, int dtype, const py::kwargs& arguments) {
  RecurrentAttentionParams params = make_params(bytes);
  if (params.num_rows == 0) return py::dict();  // nothing is launched
  const RecurrentAttentionPlan chosen = plan_recurrent_attention(params, dtype);
  params.splits = chosen.splits;
  const simt::Options options = simt_pybind::make_options(arguments);
  const Emulated emulated{params, chosen, options};
  py::dict reports;
  const int code = for_dtype(dtype, [&](auto element) -> int {
    reports = emulated.run<decltype(element)>();
    return kRdkSuccess;
  });
  if (code != kRdkSuccess) throw py::value_error("unknown dtype");
  return reports;
}

}  // namespace

PYBIND11_MODULE(recurrent_attention_emulated, m) {
  m.def("plan", &plan);
  m.def("run", &run);
  m.def("is_supported", [](const py::bytes& bytes) { return is_supported(make_params(bytes)); });
  m.def("choose_splits", &choose_splits);
}
