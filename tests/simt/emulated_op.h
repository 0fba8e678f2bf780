// A test module that runs the kernels of one op in the emulator, in the variants and shapes that
// csrc/cuda launches:
//
//   #include "rdkernels/kernels/carry_rows.cuh"
//
//   #include "emulated_op.h"
//
//   RDK_EMULATED_OP(carry_rows, CarryRowsParams)
//
// Python then calls run(params, dtype, **options) and gets the report. `params` are the bytes of the
// op's parameter struct (tests/simt/parameters.py); the test keeps alive what they point to.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <string>
#include <string_view>

#include "rdkernels/api.h"
#include "simt_pybind.h"

namespace emulated_op {

namespace py = pybind11;

template <class Params>
Params from_bytes(const py::bytes& bytes) {
  const std::string_view view = bytes;
  if (view.size() != sizeof(Params)) {
    throw py::value_error("parameters: expected " + std::to_string(sizeof(Params)) +
                          " bytes, got " + std::to_string(view.size()));
  }
  Params params;
  std::memcpy(&params, view.data(), sizeof(Params));
  return params;
}

// One emulated launch, where rdk::CudaLaunch makes one on the device.
struct Launch {
  const char* op;
  const simt::Options& options;
  simt::Report& report;

  template <class Params>
  int operator()(void (*kernel)(Params), dim3 grid, dim3 block, const Params& p) const {
    report = simt::launch(op, grid, block, 0, options, [&] { kernel(p); });
    return kRdkSuccess;
  }
};

// One launch; `launch_op` is launch_<op>.
template <class Params, class LaunchOp>
py::dict run(const char* op, LaunchOp launch_op, const py::bytes& bytes, int dtype,
             const py::kwargs& arguments) {
  const Params params = from_bytes<Params>(bytes);
  const simt::Options options = simt_pybind::make_options(arguments);
  simt::Report report;
  const int code = launch_op(params, dtype, Launch{op, options, report});
  if (code != kRdkSuccess) throw py::value_error("launcher returned " + std::to_string(code));
  return simt_pybind::to_dict(report);
}

}  // namespace emulated_op

// The op's run(params, dtype, **options) as the function `name` of a module.
#define RDK_EMULATED_RUN(module, name, op, Params)                                                \
  module.def(name, [](const pybind11::bytes& bytes, int dtype, const pybind11::kwargs& options) { \
    const auto launch_op = [](const auto&... arguments) {                                         \
      return rdk::launch_##op(arguments...);                                                      \
    };                                                                                            \
    return emulated_op::run<Params>(#op, launch_op, bytes, dtype, options);                       \
  })

// The module <op>_emulated with the function `run`.
#define RDK_EMULATED_OP(op, Params) \
  PYBIND11_MODULE(op##_emulated, m) { RDK_EMULATED_RUN(m, "run", op, Params); }
