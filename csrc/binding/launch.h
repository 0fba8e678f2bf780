// From checked tensors to a launcher: device guard, current stream, threads, error codes.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <type_traits>

#include "rdkernels/api.h"

namespace rdk::binding {

using torch::stable::Tensor;

// Hands ranges to torch's own threads (so torch.set_num_threads counts).
void parallel_for(int64_t count, int64_t grain, RdkRange body, const void* context);

// A device made current for a scope, and torch's current stream on it.
class CudaScope {
 public:
  CudaScope(const char* op, const Tensor& on);
  ~CudaScope();
  CudaScope(const CudaScope&) = delete;
  CudaScope& operator=(const CudaScope&) = delete;
  void* stream() const { return stream_; }

 private:
  struct Guard;
  Guard* guard_;
  void* stream_ = nullptr;
};

// Throws unless `code` is success.
void check_launch(const char* op, int code);

template <class Params>
using CpuLauncher = int (*)(const Params*, int dtype, RdkParallelFor);
template <class Params>
using CudaLauncher = int (*)(const Params*, int dtype, void* stream);

// Runs the op on the device of `on`. `cuda` is null in a build without CUDA; the op is then not
// registered for CUDA tensors and this is not reached with one.
template <class Params>
void launch(const char* op, const Params& params, int dtype, const Tensor& on,
            std::type_identity_t<CpuLauncher<Params>> cpu,
            std::type_identity_t<CudaLauncher<Params>> cuda) {
  if (!on.is_cuda()) return check_launch(op, cpu(&params, dtype, parallel_for));
  const CudaScope scope(op, on);
  check_launch(op, cuda(&params, dtype, scope.stream()));
}

}  // namespace rdk::binding

// RDK_LAUNCHERS(rms_norm): the op's two launchers as arguments of `launch`.
// RDK_REGISTER(rms_norm): registers functions `rms_norm` (the default overload) and `rms_norm_out`
// (the out overload) of the current namespace for CPU and, in a build with CUDA, CUDA tensors.
#ifdef RDK_WITH_CUDA
#define RDK_LAUNCHERS(op) rdk_##op##_cpu, rdk_##op##_cuda
#define RDK_REGISTER(op) RDK_REGISTER_FOR(op, CPU) RDK_REGISTER_FOR(op, CUDA)
#else
#define RDK_LAUNCHERS(op) rdk_##op##_cpu, nullptr
#define RDK_REGISTER(op) RDK_REGISTER_FOR(op, CPU)
#endif

#define RDK_REGISTER_FOR(op, key)                \
  STABLE_TORCH_LIBRARY_IMPL(rdkernels, key, m) { \
    m.impl(#op, TORCH_BOX(&op));                 \
    m.impl(#op ".out", TORCH_BOX(&op##_out));    \
  }
