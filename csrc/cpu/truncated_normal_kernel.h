// The kernel of truncated_normal; included once per instruction set (instruction_sets.h).

template <class T>
[[gnu::flatten]] void truncated_normal_rows(const TruncatedNormalParams& p, int64_t first,
                                            int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const RandomKey key = key_of_row(p.row_keys + row * p.row_keys_stride, p.seed, p.stream);
    draw_truncated_normal(key, p.std, p.width, static_cast<T*>(p.out) + row * p.out_stride);
  }
}

inline RowsFunction<TruncatedNormalParams> choose(int dtype) {
  return RDK_INSTANCE(truncated_normal_rows, dtype);
}
