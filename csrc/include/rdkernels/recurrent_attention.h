// recurrent_attention: causal attention of the rows in flight to the paged cache and each other,
// with bias and rotary embedding of q and k, and the write of the rows' own K/V into the cache.
#pragma once

#include "rdkernels/api.h"

// All tensors are in device memory and their last dimension is contiguous; strides are in elements.
// N, B and max_pages are capacities: how many rows there really are, where they are and which of
// them are active is read on the device, so one captured launch serves every step. Nothing aliases,
// except that the launch writes cells of the caches it reads; see recurrent_attention.cuh on why
// that is no race as long as no two sequences share a cell that is written.
struct RecurrentAttentionParams {
  const void* qkv;            // [N, (H + 2 * HK) * d]: q | k | v
  const void* qk_bias;        // [H + HK, d], or null
  const float* cos_sin;       // [positions, d]: d / 2 cosines, then d / 2 sines
  void* key_cache;            // [pages, page_size, HK, d], a page contiguous
  void* value_cache;          // same shape and stride as key_cache
  const int32_t* page_table;  // [B, max_pages]; entries that no position needs are never read
  const int32_t* cu_rows;     // [B + 1] prefix sums of rows per sequence
  const int32_t* start;       // [B] position of each sequence's first row
  const uint8_t* active;      // [N] bool, or null: all rows of all sequences
  void* out;                  // [N, H * d] contiguous
  void* workspace;            // rdk_recurrent_attention_workspace() bytes, 16-byte aligned, or null

  int64_t qkv_stride;         // between rows
  int64_t cache_page_stride;  // between pages
  int64_t page_table_stride;  // between sequences

  int32_t num_rows;       // N
  int32_t num_sequences;  // B
  int32_t num_heads;      // H, a multiple of HK
  int32_t num_kv_heads;   // HK
  int32_t head_dim;       // d, even, at most 256
  int32_t page_size;      // a multiple of 16
  int32_t max_pages;
  int32_t interleaved;  // rotate pairs (2i, 2i + 1), else (i, i + d / 2)
  int32_t splits;       // parts that a context is split into; 0: chosen by the launcher
  float scale;          // of the scores
};

extern "C" int rdk_recurrent_attention_cpu(const RecurrentAttentionParams* params, int dtype,
                                           RdkParallelFor parallel_for);
extern "C" int rdk_recurrent_attention_cuda(const RecurrentAttentionParams* params, int dtype,
                                            void* stream);

// Bytes of workspace that rdk_recurrent_attention_cuda needs, a function of capacities, strides and
// alignment only; the CPU needs none.
extern "C" int64_t rdk_recurrent_attention_workspace(const RecurrentAttentionParams* params,
                                                     int dtype);
