// What all launchers share: element types, error codes, and how CPU kernels get their threads.
//
// Every op <op> has a parameter struct and up to two launchers in include/rdkernels/<op>.h:
//
//   int rdk_<op>_cpu(const <Op>Params*, int dtype, RdkParallelFor);  // csrc/cpu/<op>.cpp
//   int rdk_<op>_cuda(const <Op>Params*, int dtype, void* stream);   // csrc/cuda/<op>.cu
//
// They allocate nothing, check only what they could not survive, and return 0 or an error code.
// Pointers are to memory of the device that runs the op; strides are in elements; the last
// dimension of every array is contiguous. Nothing here depends on torch.
#pragma once

#include <cstdint>

// The element types, in one list: X(code, value of the code, type in the kernels, name in Python).
#define RDK_DTYPES(X)                  \
  X(kRdkFloat32, 0, float, "float32")  \
  X(kRdkBFloat16, 1, bf16, "bfloat16") \
  X(kRdkFloat16, 2, half, "float16")

enum RdkDtype : int {
#define RDK_ENUMERATOR(code, value, type, name) code = value,
  RDK_DTYPES(RDK_ENUMERATOR)
#undef RDK_ENUMERATOR
};

// Positive codes are cudaError_t values.
enum RdkError : int {
  kRdkSuccess = 0,
  kRdkUnknownDtype = -1,
  kRdkTooLarge = -2,     // more blocks than a CUDA grid can have
  kRdkUnsupported = -3,  // a shape or option that no kernel of the op serves
};

// Calls body(context, first, last) on ranges that partition [0, count), possibly at once on several
// threads; a range is worth a thread only if it has at least `grain` items. Null means: one thread.
typedef void (*RdkRange)(const void* context, int64_t first, int64_t last);
typedef void (*RdkParallelFor)(int64_t count, int64_t grain, RdkRange body, const void* context);

extern "C" {

// The instruction set that the CPU kernels use in this process: "avx512", "avx2" or "baseline".
const char* rdk_cpu_capability(void);

// A sentence for any code that a launcher returned (the CUDA part of the library).
const char* rdk_cuda_error_string(int code);
}
