// The kernels of rms_norm, residual_norm and swiglu in the emulator, launched in the variants and
// shapes that csrc/cuda launches. Arrays are (address, row stride); the address of an absent one is
// 0.
#include <tuple>

#include "rdkernels/kernels/dispatch.cuh"
#include "rdkernels/kernels/residual_norm.cuh"
#include "rdkernels/kernels/rms_norm.cuh"
#include "rdkernels/kernels/swiglu.cuh"
#include "simt_pybind.h"

namespace py = pybind11;

namespace {

using Array = std::tuple<uintptr_t, int64_t>;

void* data(const Array& array) { return reinterpret_cast<void*>(std::get<0>(array)); }
int64_t stride(const Array& array) { return std::get<1>(array); }
rdk::RowArray rows_of(const Array& array) { return {data(array), stride(array)}; }

// Runs a row kernel as csrc/cuda/<op>.cu does. `kernel(element, chunks, aligned)` is one thread.
template <class Kernel>
py::dict run_rows(const char* op, int64_t rows, int64_t width, int dtype,
                  std::initializer_list<rdk::RowArray> arrays, const py::kwargs& options,
                  Kernel kernel) {
  simt::Report report;
  const int code = rdk::launch_rows(
      rows, width, dtype, arrays,
      [&](auto element, auto chunks, auto aligned, dim3 grid, dim3 block) -> int {
        report = simt::launch(op, grid, block, 0, simt_pybind::make_options(options),
                              [&] { kernel(element, chunks, aligned); });
        return kRdkSuccess;
      });
  if (code != kRdkSuccess) throw py::value_error("error code " + std::to_string(code));
  return simt_pybind::to_dict(report);
}

py::dict rms_norm(int dtype, int64_t rows, int64_t width, Array x, Array weight, Array out,
                  float eps, const py::kwargs& options) {
  const RmsNormParams p{data(x), data(weight), data(out), rows, width, stride(x), stride(out), eps};
  return run_rows(
      "rms_norm", rows, width, dtype, {rows_of(x), rows_of(weight), rows_of(out)}, options,
      [&](auto element, auto chunks, auto aligned) {
        rdk::rms_norm_kernel<decltype(element), decltype(chunks)::value, decltype(aligned)::value>(
            p);
      });
}

py::dict residual_norm(int dtype, int64_t rows, int64_t width, Array delta, Array residual,
                       Array post, Array pre, Array hidden, Array normed, float eps, int style,
                       const py::kwargs& options) {
  const ResidualNormParams p{
      data(delta),    data(residual), data(post), data(pre),     data(hidden),
      data(normed),   rows,           width,      stride(delta), stride(residual),
      stride(hidden), stride(normed), eps,        style};
  return run_rows("residual_norm", rows, width, dtype,
                  {rows_of(delta), rows_of(residual), rows_of(post), rows_of(pre), rows_of(hidden),
                   rows_of(normed)},
                  options, [&](auto element, auto chunks, auto aligned) {
                    rdk::residual_norm_kernel<decltype(element), decltype(chunks)::value,
                                              decltype(aligned)::value>(p);
                  });
}

py::dict swiglu(int dtype, int64_t rows, int64_t width, Array x, Array out,
                const py::kwargs& options) {
  const SwigluParams p{data(x), data(out), rows, width, stride(x), stride(out)};
  simt::Report report;
  const int code = rdk::launch_swiglu(p, dtype, [&](auto element, auto aligned, dim3 grid) -> int {
    report =
        simt::launch("swiglu", grid, rdk::kSwigluThreads, 0, simt_pybind::make_options(options),
                     [&] { rdk::swiglu_kernel<decltype(element), decltype(aligned)::value>(p); });
    return kRdkSuccess;
  });
  if (code != kRdkSuccess) throw py::value_error("error code " + std::to_string(code));
  return simt_pybind::to_dict(report);
}

}  // namespace

PYBIND11_MODULE(row_kernels, m) {
  m.def("rms_norm", &rms_norm);
  m.def("residual_norm", &residual_norm);
  m.def("swiglu", &swiglu);
}
