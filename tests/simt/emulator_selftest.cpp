// Launches the kernels of selftest_kernels.cuh for test_emulator.py. Arrays come and go as numpy
// arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "selftest_errors.cuh"
#include "selftest_kernels.cuh"
#include "simt_pybind.h"

namespace py = pybind11;
using namespace selftest;
using simt_pybind::make_options;
using simt_pybind::to_dict;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// Runs a kernel with the launch options that Python gave.
py::dict run(const char* name, unsigned grid, unsigned block, size_t shared,
             const py::kwargs& options, std::function<void()> body) {
  return to_dict(
      simt::launch(name, dim3(grid), dim3(block), shared, make_options(options), std::move(body)));
}

template <class T>
Array<T> shuffle(int op, uint32_t mask, Array<T> in, Array<int> argument, int width,
                 const py::kwargs& options) {
  Array<T> out(in.size());
  std::fill_n(out.mutable_data(), out.size(), T(-1));
  const T* source = in.data();
  T* target = out.mutable_data();
  const int* arguments = argument.data();
  run("shuffle", 1, static_cast<unsigned>(in.size()), 0, options,
      [=] { shuffle_kernel(static_cast<Warp>(op), mask, source, target, arguments, width); });
  return out;
}

template <class T>
Array<T> vote(int op, uint32_t mask, Array<T> in, const py::kwargs& options) {
  Array<T> out(in.size());
  std::fill_n(out.mutable_data(), out.size(), T(77));
  const T* source = in.data();
  T* target = out.mutable_data();
  run("vote", 1, static_cast<unsigned>(in.size()), 0, options,
      [=] { vote_kernel(static_cast<Warp>(op), mask, source, target); });
  return out;
}

Array<int> split_warp(const py::kwargs& options) {
  Array<int> out(32);
  int* target = out.mutable_data();
  run("split_warp", 1, 32, 0, options, [=] { split_warp_kernel(target); });
  return out;
}

py::tuple reverse(bool sync, Array<float> in, unsigned block, const py::kwargs& options) {
  Array<float> out(in.size());
  const float* source = in.data();
  float* target = out.mutable_data();
  py::dict report = run(
      "reverse", static_cast<unsigned>(in.size()) / block, block, block * 4, options,
      [=] { sync ? reverse_kernel<true>(source, target) : reverse_kernel<false>(source, target); });
  return py::make_tuple(out, report);
}

Array<float> reverse_warp(bool sync, Array<float> in, const py::kwargs& options) {
  Array<float> out(in.size());
  const float* source = in.data();
  float* target = out.mutable_data();
  run("reverse_warp", static_cast<unsigned>(in.size()) / 32, 32, 0, options, [=] {
    sync ? reverse_warp_kernel<true>(source, target) : reverse_warp_kernel<false>(source, target);
  });
  return out;
}

Array<int> barrier_votes(Array<int> in, const py::kwargs& options) {
  Array<int> out({py::ssize_t{6}, in.size()});
  const int* source = in.data();
  int* target = out.mutable_data();
  run("barrier_votes", 1, static_cast<unsigned>(in.size()), 0, options,
      [=] { barrier_votes_kernel(source, target); });
  return out;
}

// in: [3, threads, 4]; out: [2, 3, threads, 4]
Array<float> async_copy(Array<float> in, Array<int> valid, int left, const py::kwargs& options) {
  const py::ssize_t threads = in.shape(1);
  Array<float> out({py::ssize_t{2}, py::ssize_t{3}, threads, py::ssize_t{4}});
  const auto* source = reinterpret_cast<const float4*>(in.data());
  auto* target = reinterpret_cast<float4*>(out.mutable_data());
  const int* is_valid = valid.data();
  run("async_copy", 1, static_cast<unsigned>(threads), static_cast<size_t>(threads) * 48, options,
      [=] {
        left == 2   ? async_copy_kernel<3, 2>(source, is_valid, target)
        : left == 1 ? async_copy_kernel<3, 1>(source, is_valid, target)
                    : async_copy_kernel<3, 0>(source, is_valid, target);
      });
  return out;
}

Array<uint8_t> narrow_async_copy(Array<uint8_t> in, const py::kwargs& options) {
  Array<uint8_t> out(384);
  const uint8_t* source = in.data();
  uint8_t* target = out.mutable_data();
  run("narrow_async_copy", 1, 32, 384, options, [=] { narrow_async_copy_kernel(source, target); });
  return out;
}

py::tuple ldmatrix(int count, bool transpose, Array<uint16_t> in, int stride,
                   const py::kwargs& options) {
  Array<uint32_t> out({32, count});
  const auto* source = reinterpret_cast<const uint4*>(in.data());
  uint32_t* target = out.mutable_data();
  py::dict report = run("ldmatrix", 1, 32, static_cast<size_t>(stride) * 32, options, [=] {
    switch (count * 2 + transpose) {
      case 2:
        return ldmatrix_kernel<1, false>(source, target, stride);
      case 3:
        return ldmatrix_kernel<1, true>(source, target, stride);
      case 4:
        return ldmatrix_kernel<2, false>(source, target, stride);
      case 5:
        return ldmatrix_kernel<2, true>(source, target, stride);
      case 8:
        return ldmatrix_kernel<4, false>(source, target, stride);
      default:
        return ldmatrix_kernel<4, true>(source, target, stride);
    }
  });
  return py::make_tuple(out, report);
}

template <class T>
py::tuple mma(Array<uint16_t> a, Array<uint16_t> b, Array<float> c, const py::kwargs& options) {
  Array<float> d({16, 8});
  const auto* left = reinterpret_cast<const T*>(a.data());
  const auto* right = reinterpret_cast<const T*>(b.data());
  const float* start = c.data();
  float* target = d.mutable_data();
  py::dict report =
      run("mma", 1, 32, 768, options, [=] { mma_kernel<T>(left, right, start, target); });
  return py::make_tuple(d, report);
}

template <class T>
py::tuple pack(Array<float> in) {
  Array<uint32_t> packed(in.size() / 2);
  Array<float> out(in.size());
  const float* source = in.data();
  uint32_t* bits = packed.mutable_data();
  float* target = out.mutable_data();
  run("pack", 1, static_cast<unsigned>(in.size()) / 2, 0, {},
      [=] { pack_kernel<T>(source, bits, target); });
  return py::make_tuple(packed, out);
}

py::dict banks(int bytes, int stride) {
  alignas(16) unsigned char sink[32 * 16];
  const size_t shared = static_cast<size_t>(stride) * 31 + 16;
  const auto go = [&](auto* out) {
    return run("banks", 1, 32, shared, {}, [=] { bank_kernel(stride, out); });
  };
  switch (bytes) {
    case 1:
      return go(sink);
    case 2:
      return go(reinterpret_cast<uint16_t*>(sink));
    case 4:
      return go(reinterpret_cast<float*>(sink));
    case 8:
      return go(reinterpret_cast<float2*>(sink));
    default:
      return go(reinterpret_cast<float4*>(sink));
  }
}

py::dict async_banks(int stride) {
  static const uint4 source[32] = {};
  return run("async_banks", 1, 32, static_cast<size_t>(stride) * 31 + 16, {},
             [=] { async_bank_kernel(stride, source); });
}

// Addresses are given by Python so that their alignment is known.
py::dict sectors(int bytes, uintptr_t in, uintptr_t out, int offset, int stride, int rounds,
                 unsigned grid, unsigned block, const py::kwargs& options) {
  const auto go = [&](auto element) {
    using V = decltype(element);
    return run("sectors", grid, block, 0, options, [=] {
      sector_kernel(reinterpret_cast<const V*>(in), reinterpret_cast<V*>(out), offset, stride,
                    rounds);
    });
  };
  return bytes == 2 ? go(bf16{}) : bytes == 4 ? go(float{}) : go(float4{});
}

py::tuple ragged(Array<float> in) {
  Array<float> out(32);
  const float* source = in.data();
  float* target = out.mutable_data();
  py::dict report = run("ragged", 1, 32, 0, {}, [=] { ragged_kernel(source, target); });
  return py::make_tuple(out, report);
}

py::dict atomics(unsigned grid, unsigned block, const py::kwargs& options) {
  AtomicResults r{};
  py::dict d = run("atomics", grid, block, 0, options, [&] { atomics_kernel(&r); });
  d["add_int"] = r.add_int;
  d["max_int"] = r.max_int;
  d["min_int"] = r.min_int;
  d["swapped"] = r.swapped;
  d["add_unsigned"] = r.add_unsigned;
  d["bits"] = r.bits;
  d["add_long"] = r.add_long;
  d["add_float"] = r.add_float;
  d["ticket"] = r.ticket;
  d["last_blocks"] = r.last_blocks;
  return d;
}

int lost_update(unsigned grid, const py::kwargs& options) {
  int counter = 0;
  run("lost_update", grid, 1, 0, options, [&] { lost_update_kernel(&counter); });
  return counter;
}

Array<float> poison(const py::kwargs& options) {
  Array<float> out({4, 128});
  float* target = out.mutable_data();
  run("poison", 4, 64, 256, options, [=] { poison_kernel(target + 128 * blockIdx.x); });
  return out;
}

Array<float> fast_math(Array<float> in) {
  const int n = static_cast<int>(in.size());
  Array<float> out({9, n});
  const float* source = in.data();
  float* target = out.mutable_data();
  run("fast_math", 1, static_cast<unsigned>(n), 0, {},
      [=] { fast_math_kernel(source, target, n); });
  return out;
}

Array<uint32_t> bits(Array<uint32_t> in) {
  const int n = static_cast<int>(in.size());
  Array<uint32_t> out({5, n});
  const uint32_t* source = in.data();
  uint32_t* target = out.mutable_data();
  run("bits", 1, static_cast<unsigned>(n), 0, {}, [=] { bits_kernel(source, target, n); });
  return out;
}

void fault(const std::string& name, const py::kwargs& options) {
  run(name.c_str(), 2, 64, 256, options, faulty_kernels().at(name));
}

// Past the end through a plain pointer, which only AddressSanitizer can see.
void raw_overrun(bool is_static) {
  run("raw_overrun", 1, 1, 64, {}, [=] {
    RDK_DYNAMIC_SHARED(raw);
    RDK_SHARED(unsigned char, array, 20);
    volatile unsigned char* place = is_static ? array + 20 : raw + 64;
    *place = 1;
  });
}

template <class T>
Array<float> all_to_float() {
  Array<float> out(65536);
  for (int i = 0; i < 65536; ++i) {
    out.mutable_data()[i] = rdk::to_float(rdk::bit_cast<T>(static_cast<uint16_t>(i)));
  }
  return out;
}

template <class T>
Array<uint16_t> from_floats(Array<float> in) {
  Array<uint16_t> out(in.size());
  for (py::ssize_t i = 0; i < in.size(); ++i) {
    out.mutable_data()[i] = rdk::bit_cast<uint16_t>(rdk::from_float<T>(in.data()[i]));
  }
  return out;
}

}  // namespace

PYBIND11_MODULE(emulator_selftest, m) {
  m.def("shuffle_int", &shuffle<int>);
  m.def("shuffle_double", &shuffle<double>);
  m.def("vote", &vote<int>);
  m.def("split_warp", &split_warp);
  m.def("reverse", &reverse);
  m.def("reverse_warp", &reverse_warp);
  m.def("barrier_votes", &barrier_votes);
  m.def("async_copy", &async_copy);
  m.def("narrow_async_copy", &narrow_async_copy);
  m.def("ldmatrix", &ldmatrix);
  m.def("mma_bf16", &mma<bf16>);
  m.def("mma_half", &mma<half>);
  m.def("pack_bf16", &pack<bf16>);
  m.def("pack_half", &pack<half>);
  m.def("banks", &banks);
  m.def("async_banks", &async_banks);
  m.def("sectors", &sectors);
  m.def("ragged", &ragged);
  m.def("atomics", &atomics);
  m.def("lost_update", &lost_update);
  m.def("poison", &poison);
  m.def("fast_math", &fast_math);
  m.def("bits", &bits);
  m.def("fault", &fault);
  m.def("raw_overrun", &raw_overrun);
  m.def("bf16_to_float", &all_to_float<bf16>);
  m.def("half_to_float", &all_to_float<half>);
  m.def("bf16_from_float", &from_floats<bf16>);
  m.def("half_from_float", &from_floats<half>);
  m.def("launch_shape",
        [](std::array<unsigned, 3> grid, std::array<unsigned, 3> block, size_t shared) {
          simt::launch("shape", dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]),
                       shared, {}, [] {});
        });
  m.def("indices", [](std::array<unsigned, 3> grid, std::array<unsigned, 3> block) {
    std::vector<std::array<unsigned, 6>> seen;
    simt::launch("indices", dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), 0,
                 {}, [&] {
                   seen.push_back(
                       {blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z});
                 });
    return seen;
  });
  m.def("outside_kernel", [] { __syncthreads(); });
}
