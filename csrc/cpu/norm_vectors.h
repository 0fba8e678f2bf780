// What the norms share, on rows as vectors; included once per instruction set (instruction_sets.h).

#include "row_vectors.h"

// out = round(x * scale) * weight, rounded again; x is in a cache, and meanwhile `next`, a row that
// is not, is fetched. out may be x.
template <class T>
RDK_KERNEL void scale_row(const T* x, float scale, const T* weight, T* out, int64_t width,
                          const T* next) {
  for_each_vector<2>(width, [&](auto span, int) {
    fetch(next, span);
    write(out, span, rounded<T>(read(x, span) * scale) * read(weight, span));
  });
}
