// The step of recurrent_attention that writes keys and values to the cache; included once per
// instruction set (instruction_sets.h).

template <class T>
[[gnu::flatten]] void write_rows(const WriteJob& job, int64_t first, int64_t last) {
  const Params& p = job.p;
  const int64_t d = p.head_dim, q_width = p.num_heads * d, kv_width = p.num_kv_heads * d;
  for (int64_t row = first; row < last; ++row) {
    const AttentionRow at = job.rows[row];
    if (at.sequence < 0) {
      std::memset(static_cast<T*>(p.out) + row * q_width, 0, q_width * sizeof(T));
      continue;
    }
    const T* keys = static_cast<const T*>(p.qkv) + row * p.qkv_stride + q_width;
    const T* bias = p.qk_bias ? static_cast<const T*>(p.qk_bias) + q_width : nullptr;
    const float* cos_sin = p.cos_sin + at.position * d;
    const int64_t page =
        p.page_table[at.sequence * p.page_table_stride + at.position / p.page_size];
    const int64_t cell = page * p.cache_page_stride + at.position % p.page_size * kv_width;
    T* key_cell = static_cast<T*>(p.key_cache) + cell;
    for (int64_t h = 0; h < kv_width; h += d) {
      rotate_head(keys + h, bias ? bias + h : nullptr, cos_sin, p.head_dim, p.interleaved != 0,
                  key_cell + h);
    }
    std::memcpy(static_cast<T*>(p.value_cache) + cell, keys + kv_width, kv_width * sizeof(T));
  }
}

inline RowsFunction<WriteJob> choose(int dtype) { return RDK_INSTANCE(write_rows, dtype); }
