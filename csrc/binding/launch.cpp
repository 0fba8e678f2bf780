#include "launch.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <stdexcept>
#include <string>

namespace rdk::binding {
namespace {

using StreamGetter = AOTITorchError (*)(int32_t device, void** stream);

// aoti_torch_get_current_cuda_stream lives in libtorch_cuda, which CPU builds of torch do not have:
// naming it as an undefined symbol would keep the extension from loading there. torch is loaded
// with RTLD_LOCAL, so the library has to be asked by name; RTLD_NOLOAD finds the loaded one only.
StreamGetter stream_getter() {
  static const StreamGetter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<StreamGetter>(symbol);
  }();
  return getter;
}

}  // namespace

void parallel_for(int64_t count, int64_t grain, RdkRange body, const void* context) {
  torch::stable::parallel_for(0, count, grain,
                              [=](int64_t first, int64_t last) { body(context, first, last); });
}

struct CudaScope::Guard {
  torch::stable::accelerator::DeviceGuard device;
};

CudaScope::CudaScope(const char* op, const Tensor& on)
    : guard_(new Guard{torch::stable::accelerator::DeviceGuard(on.get_device_index())}) {
  const StreamGetter getter = stream_getter();
  if (getter == nullptr || getter(on.get_device_index(), &stream_) != AOTI_TORCH_SUCCESS) {
    delete guard_;
    throw std::runtime_error(std::string(op) + ": torch does not tell its current CUDA stream");
  }
}

CudaScope::~CudaScope() { delete guard_; }

void check_launch(const char* op, int code) {
  if (code == kRdkSuccess) return;
#ifdef RDK_WITH_CUDA
  const std::string reason = rdk_cuda_error_string(code);
#else
  const std::string reason = "unknown element type";
#endif
  throw std::runtime_error(std::string(op) + ": launch failed with code " + std::to_string(code) +
                           ": " + reason);
}

}  // namespace rdk::binding
