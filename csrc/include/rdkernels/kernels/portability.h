// The few macros that let one source file serve nvcc, plain g++ (csrc/cpu) and the emulator
// (csrc/simt).
#pragma once

#if defined(__CUDACC__)
#define RDK_DEVICE __device__ __forceinline__
#define RDK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define RDK_DEVICE inline
#define RDK_HOST_DEVICE inline
#endif
