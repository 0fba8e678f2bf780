// The shared memory of one block.
//
// Everything is filled with 0xFF before the block starts, which is NaN in fp32, bf16 and fp16, so
// that reading what nobody wrote shows in the result. Gaps between arrays are forbidden territory
// for AddressSanitizer.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace simt {

class SharedMemory {
 public:
  static constexpr size_t kStaticLimit = 48 * 1024;  // CUDA's limit for static shared memory

  explicit SharedMemory(size_t dynamic_bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  unsigned char* dynamic() const { return base_; }

  // The array with identity `tag`, made by the first thread of the block that asks for it; null if
  // the static limit would be exceeded.
  void* static_array(const void* tag, size_t bytes);

  // Is [p, p + bytes) inside one array?
  bool contains(const void* p, size_t bytes) const;
  // Is p anywhere in this memory, gaps included?
  bool owns(const void* p) const;

  size_t static_bytes() const { return static_bytes_; }

 private:
  struct Array {
    const void* tag;
    unsigned char* begin;
    size_t bytes;
  };
  unsigned char* base_ = nullptr;  // aligned so that bank = address / 4 % 32
  size_t capacity_ = 0;
  size_t dynamic_bytes_ = 0;
  size_t used_ = 0;  // fences included
  size_t static_bytes_ = 0;
  std::vector<Array> arrays_;
};

}  // namespace simt
