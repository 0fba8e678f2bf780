// AddressSanitizer's manual interface, or nothing in builds without it.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
inline void forbid(const void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
inline void allow(const void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
inline void begin_switch(void** fake_stack, const void* bottom, size_t bytes) {
  __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
}
inline void end_switch(void* fake_stack, const void** old_bottom, size_t* old_bytes) {
  __sanitizer_finish_switch_fiber(fake_stack, old_bottom, old_bytes);
}
#else
inline constexpr bool kSanitized = false;
inline void forbid(const void*, size_t) {}
inline void allow(const void*, size_t) {}
inline void begin_switch(void**, const void*, size_t) {}
inline void end_switch(void*, const void**, size_t*) {}
#endif

}  // namespace simt
