// The kernel of carry_rows; included once per instruction set (instruction_sets.h).

template <class T>
[[gnu::flatten]] void carry_rows_rows(const CarryRowsParams& p, int64_t first, int64_t last) {
  const size_t bytes = static_cast<size_t>(p.width) * sizeof(T);  // zero bits are zeros
  const int64_t count = *p.row_count;
  for (int64_t row = first; row < last; ++row) {
    T* state = static_cast<T*>(p.next_state) + row * p.next_state_stride;
    T* embed = static_cast<T*>(p.next_embed) + row * p.next_embed_stride;
    const int64_t source = row < count ? p.source_row[row] : -1;
    const bool fresh = source < 0;
    if (row < count && (!fresh || p.continuous)) {
      const int64_t from = fresh ? -1 - source : source;
      std::memcpy(state, static_cast<const T*>(p.state) + from * p.state_stride, bytes);
    } else if (row < count && p.std > 0.0f) {
      const int32_t* const key = p.row_keys + row * p.row_keys_stride;
      draw_truncated_normal(random_key(key[0], key[1], /*step=*/0, p.seed, kStreamInitialState),
                            p.std, p.width, state);
    } else {
      std::memset(static_cast<void*>(state), 0, bytes);
    }
    if (fresh) {
      std::memset(static_cast<void*>(embed), 0, bytes);
    } else {
      std::memcpy(embed, static_cast<const T*>(p.embed) + source * p.embed_stride, bytes);
    }
  }
}

inline RowsFunction<CarryRowsParams> choose(int dtype) {
  return RDK_INSTANCE(carry_rows_rows, dtype);
}
