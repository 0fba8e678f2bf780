// Loads, stores and asynchronous copies: checked, counted, then performed.
#pragma once

#include <cstdint>

#include "block.h"

namespace simt {

// Checks one access of `bytes` at `p` by the running thread and records it for the counters.
void touch_global(const void* p, unsigned bytes, bool is_write, const Site& site);
void touch_shared(const void* p, unsigned bytes, Access kind, const Site& site);

template <class T>
constexpr void check_access_type() {
  static_assert(std::is_trivially_copyable_v<T>);
  static_assert(
      sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16,
      "one access moves 1, 2, 4, 8 or 16 bytes");
}

// Values are moved as bytes: a kernel may read uint4 from an array of bf16, as the hardware lets
// it.
template <class T>
T load_global(const void* p, const Site& site) {
  check_access_type<T>();
  touch_global(p, sizeof(T), /*is_write=*/false, site);
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <class T>
void store_global(void* p, const T& value, const Site& site) {
  check_access_type<T>();
  touch_global(p, sizeof(T), /*is_write=*/true, site);
  std::memcpy(p, &value, sizeof(T));
}

template <class T>
T load_shared(const void* p, const Site& site) {
  check_access_type<T>();
  touch_shared(p, sizeof(T), Access::kSharedLoad, site);
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

template <class T>
void store_shared(void* p, const T& value, const Site& site) {
  check_access_type<T>();
  touch_shared(p, sizeof(T), Access::kSharedStore, site);
  std::memcpy(p, &value, sizeof(T));
}

unsigned char* dynamic_shared();
void* static_shared_bytes(const void* tag, size_t bytes);

template <class T>
T* static_shared(const void* tag, size_t count) {
  return static_cast<T*>(static_shared_bytes(tag, count * sizeof(T)));
}

void cp_async(void* shared, const void* global, unsigned bytes, bool valid, const Site& site);
void cp_async_commit();
void cp_async_wait(int groups_left);
void cp_async_wait_all();

}  // namespace simt
