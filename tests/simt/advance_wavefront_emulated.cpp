#include "rdkernels/kernels/advance_wavefront.cuh"

#include "emulated_op.h"

// The op has no element type: its arguments are integers.
PYBIND11_MODULE(advance_wavefront_emulated, m) {
  m.def("run", [](const pybind11::bytes& bytes, const pybind11::kwargs& options) {
    const auto launch_op = [](const AdvanceWavefrontParams& p, int, const auto& launch) {
      return rdk::launch_advance_wavefront(p, launch);
    };
    constexpr int kNoDtype = 0;
    return emulated_op::run<AdvanceWavefrontParams>("advance_wavefront", launch_op, bytes, kNoDtype,
                                                    options);
  });
}
