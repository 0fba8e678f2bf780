// Vector registers, for kernels that spell them out. Included once per instruction set, inside a
// namespace and a target region (instruction_sets.h), hence no include guard.

constexpr int kLanes = RDK_VECTOR_BYTES / 4;
using Floats = float __attribute__((vector_size(RDK_VECTOR_BYTES)));
using Words = uint32_t __attribute__((vector_size(RDK_VECTOR_BYTES)));
using Ints = int32_t __attribute__((vector_size(RDK_VECTOR_BYTES)));

template <class V>
RDK_KERNEL V load(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <class V>
RDK_KERNEL void store(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

// Lane i is a[index] or, from kLanes on, b[index - kLanes]; one index per lane.
#if defined(__clang__)
#define RDK_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RDK_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Ints{__VA_ARGS__})
#endif

using LaneIndices = std::make_integer_sequence<int, kLanes>;

// Lane i is v[i + kStep].
template <int kStep, int... I>
RDK_KERNEL Floats rotate_lanes(Floats v, std::integer_sequence<int, I...>) {
  return RDK_SHUFFLE(v, v, ((I + kStep) % kLanes)...);
}

// The odd blocks of kStep lanes of a change places with the even ones of b.
template <int kStep, class V, int... I>
RDK_KERNEL void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
  const V low = RDK_SHUFFLE(a, b, ((I & kStep) ? kLanes + I - kStep : I)...);
  b = RDK_SHUFFLE(a, b, ((I & kStep) ? kLanes + I : I + kStep)...);
  a = low;
}

// The sum over the lanes.
template <int kStep = kLanes / 2>
RDK_KERNEL float sum_of(Floats v) {
  v += rotate_lanes<kStep>(v, LaneIndices());
  if constexpr (kStep > 1) return sum_of<kStep / 2>(v);
  return v[0];
}
