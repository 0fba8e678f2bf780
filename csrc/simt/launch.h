// Running a kernel.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "cuda_types.h"
#include "options.h"
#include "report.h"

namespace simt {

// Runs `body` (a lambda that calls the kernel) once per thread of the grid and returns what was
// counted.
//
//   simt::Report report = simt::launch("rms_norm", grid, block, shared_bytes, options,
//                                      [&] { rms_norm_kernel<bf16, 128>(params); });
//
// Throws simt::Error when the shape is one that CUDA refuses or when the kernel misbehaves; the
// grid is then abandoned, and global memory holds whatever was written until then.
Report launch(std::string kernel, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
              const Options& options, std::function<void()> body);

}  // namespace simt
