#include "attention_arguments.h"

#include <algorithm>
#include <string>

namespace rdk::binding {

int64_t heads_of(const char* op, const char* argument, const Tensor& tensor, int64_t dimension,
                 const char* cache_argument, const Tensor& key_cache) {
  const int64_t kv_heads = key_cache.size(2), head_dim = key_cache.size(3);
  if (kv_heads < 1) fail(op, cache_argument, "at least one KV head", describe(key_cache));
  if (head_dim < 2 || head_dim % 2 != 0) {
    fail(op, cache_argument, "an even head_dim", std::to_string(head_dim));
  }
  const int64_t size = tensor.size(dimension), heads = size / head_dim - 2 * kv_heads;
  if (size % head_dim != 0 || heads <= 0 || heads % kv_heads != 0) {
    const std::string count = std::to_string(kv_heads);
    fail(op, argument,
         std::string(dimension == 0 ? "first" : "second") + " size (heads + 2 * " + count + ") * " +
             std::to_string(head_dim) + ", heads a multiple of " + count,
         describe(tensor));
  }
  return heads;
}

void expect_contiguous_pages(const char* op, const char* argument, const Tensor& cache) {
  const int64_t cell = cache.size(2) * cache.size(3), page = cache.size(1) * cell;
  const bool contiguous =
      cache.numel() == 0 || ((cache.size(3) == 1 || cache.stride(3) == 1) &&
                             (cache.size(2) == 1 || cache.stride(2) == cache.size(3)) &&
                             (cache.size(1) == 1 || cache.stride(1) == cell) &&
                             (cache.size(0) == 1 || cache.stride(0) >= page));
  if (!contiguous) fail(op, argument, "contiguous pages", "other strides");
}

void check_layout(const char* op, const RecurrentAttentionParams& p, int64_t positions,
                  int64_t pages) {
  check_row_bounds(op, p.cu_rows, p.num_sequences, p.num_rows);
  for (int32_t b = 0; b < p.num_sequences; ++b) {
    const int64_t rows = int64_t{p.cu_rows[b + 1]} - p.cu_rows[b];
    if (rows == 0) continue;
    const int64_t end = p.start[b] + rows;
    const int64_t most = std::min(positions, int64_t{p.max_pages} * p.page_size);
    if (p.start[b] < 0 || end > most) {
      fail(op, "start",
           "positions within cos_sin and the page table, below " + std::to_string(most),
           std::to_string(p.start[b]) + " to " + std::to_string(end - 1) + " for sequence " +
               std::to_string(b));
    }
    const int32_t* page = p.page_table + b * p.page_table_stride;
    for (int64_t i = 0; i * p.page_size < end; ++i) {
      if (page[i] < 0 || page[i] >= pages) {
        fail(op, "page_table", "pages below " + std::to_string(pages),
             std::to_string(page[i]) + " for sequence " + std::to_string(b));
      }
    }
  }
}

}  // namespace rdk::binding
