#include "shared_memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "sanitizer.h"

namespace simt {
namespace {

constexpr size_t kBaseAlignment = 1024;  // a multiple of the 128 that RDK_DYNAMIC_SHARED asks for
constexpr size_t kFence = 128;           // keeps arrays apart and their banks where they were

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

SharedMemory::SharedMemory(size_t dynamic_bytes) : dynamic_bytes_(dynamic_bytes) {
  used_ = round_up(dynamic_bytes, kFence) + kFence;
  // Each static array costs at most two fences on top of its size; small ones are the worst case.
  capacity_ = round_up(used_ + 4 * kStaticLimit, kBaseAlignment);
  base_ = static_cast<unsigned char*>(std::aligned_alloc(kBaseAlignment, capacity_));
  if (base_ == nullptr) throw std::bad_alloc();
  std::memset(base_, 0xFF, dynamic_bytes);
  forbid(base_, capacity_);
  allow(base_, dynamic_bytes);
}

SharedMemory::~SharedMemory() {
  allow(base_, capacity_);
  std::free(base_);
}

void* SharedMemory::static_array(const void* tag, size_t bytes) {
  for (const Array& array : arrays_) {
    if (array.tag == tag) return array.begin;
  }
  const size_t footprint = round_up(bytes, kFence) + kFence;
  if (static_bytes_ + bytes > kStaticLimit || used_ + footprint > capacity_) return nullptr;
  unsigned char* begin = base_ + used_;
  allow(begin, bytes);
  std::memset(begin, 0xFF, bytes);
  used_ += footprint;
  static_bytes_ += bytes;
  arrays_.push_back({tag, begin, bytes});
  return begin;
}

bool SharedMemory::contains(const void* p, size_t bytes) const {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const auto inside = [&](const unsigned char* begin, size_t size) {
    const auto first = reinterpret_cast<uintptr_t>(begin);
    return address >= first && address + bytes <= first + size;
  };
  if (inside(base_, dynamic_bytes_)) return true;
  for (const Array& array : arrays_) {
    if (inside(array.begin, array.bytes)) return true;
  }
  return false;
}

bool SharedMemory::owns(const void* p) const {
  const auto address = reinterpret_cast<uintptr_t>(p);
  const auto first = reinterpret_cast<uintptr_t>(base_);
  return address >= first && address < first + capacity_;
}

}  // namespace simt
