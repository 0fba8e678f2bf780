// The kernel of recurrent_attention on the CPU. attention_variants.cpp includes this file once per
// instruction set (instruction_sets.h), hence no include guard.
//
//    keys of 64 positions                             values of 64 positions
//        [d words][64]                                    [64 / pack][d]
//              |                                                 |
//   q ---> multiply ---> scores ---> weigh ---> weights ---> multiply ---> out
//   [6][d words]         [6][64]             [6][64 / pack]              [6][d]
//
// Keys and values are packed once per KV head and block of positions, and used by all lines of the
// item, 6 at a time. The softmax is online: maximum and sum of a line go from block to block.
//
// Both products are one function, multiply(): rows of words times a packed matrix of words. A word
// is a float, or a pair of bf16 that the dot product instruction sums; keys are transposed when
// they are packed, values are interleaved by pairs of positions.

#include "attention_vectors.h"

// ---- Online softmax -----------------------------------------------------------------------------

// 2^x for x <= 0 (and NaN) by the Taylor polynomial of e^(r ln 2), |r| <= 1/2; 0 below 2^-126.
template <int kTerms>
RDK_KERNEL Floats exp2_of(Floats x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low bits
  constexpr float kCoefficients[] = {1.0f,           0.693147181f,   0.240226507f,   0.0555041087f,
                                     0.00961812911f, 0.00133335581f, 0.000154035304f};
  const Floats shifted = x + kRound;
  const Floats r = x - (shifted - kRound);
  Floats power = Floats{} + kCoefficients[kTerms];
#pragma GCC unroll 8
  for (int i = kTerms - 1; i >= 0; --i) power = power * r + kCoefficients[i];
  const Floats scale = reinterpret_cast<Floats>((reinterpret_cast<Words>(shifted) + 127u) << 23);
  return x < -126.0f ? Floats{} : power * scale;
}

// The scores of one line and block to weights. The first `visible` columns count. Returns the
// factor that brings what was summed with the old maximum to the new one.
template <class Operand>
RDK_KERNEL float weigh(const float* scores, int visible, float scale_log2, float& maximum,
                       float& sum, uint32_t* weights) {
  constexpr int kVectors = kBlockPositions / kLanes;
  const Ints lane = count_up(LaneIndices());
  const Floats nothing = Floats{} - std::numeric_limits<float>::infinity();
  Floats scaled[kVectors];
  Floats largest = nothing;
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const Floats score = load<Floats>(scores + v * kLanes) * scale_log2;
    scaled[v] = lane < visible - v * kLanes ? score : nothing;
    largest = larger(scaled[v], largest);
  }
  const float old_maximum = maximum;
  const float block_maximum = maximum_of(largest);
  if (block_maximum > maximum) maximum = block_maximum;
  // A line that has seen nothing yet (or only scores of -inf) subtracts 0.
  const float base = maximum == nothing[0] ? 0.0f : maximum;
  Floats total{};
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const Floats weight = Operand::rounded_weight(exp2_of<Operand::kTerms>(scaled[v] - base));
    total += weight;
    Operand::store_weights(weights, v, weight);
  }
  if (old_maximum == maximum) {
    sum += sum_of(total);
    return 1.0f;
  }
  const float correction = exp2_of<FloatOperand::kTerms>(Floats{} + (old_maximum - base))[0];
  sum = sum * correction + sum_of(total);
  return correction;
}

// ---- An item ------------------------------------------------------------------------------------

// Cells of a block of positions, for KV head 0.
template <class T>
struct Cells {
  const T* keys[kBlockPositions];
  const T* values[kBlockPositions];
  int count = 0;

  RDK_KERNEL void find(const RecurrentAttentionParams& p, int sequence, int first, int last) {
    const int32_t* pages = p.page_table + sequence * p.page_table_stride;
    const int64_t cell_stride = int64_t{p.num_kv_heads} * p.head_dim;
    count = last - first < kBlockPositions ? last - first : kBlockPositions;
    int page = first / p.page_size, cell = first % p.page_size;
    for (int i = 0; i < count; ++page, cell = 0) {
      const int64_t offset = pages[page] * p.cache_page_stride;
      for (; cell < p.page_size && i < count; ++cell, ++i) {
        keys[i] = static_cast<const T*>(p.key_cache) + offset + cell * cell_stride;
        values[i] = static_cast<const T*>(p.value_cache) + offset + cell * cell_stride;
      }
    }
  }
};

// Hands out parts of the thread's scratch memory; without memory it only adds up their sizes.
struct Carver {
  std::byte* memory;
  size_t used = 0;
  template <class U>
  RDK_KERNEL U* take(int64_t count) {
    U* const part = memory ? reinterpret_cast<U*>(memory + used) : nullptr;
    used += (static_cast<size_t>(count) * sizeof(U) + 63) / 64 * 64;
    return part;
  }
};

// All that an item works on. Arrays "per head" follow each other by KV head.
template <class T, class Operand>
struct Workspace {
  using Element = typename Operand::Element;
  const AttentionJob& job;
  const AttentionItem& item;
  const RecurrentAttentionParams& p = *job.params;
  int head_dim = p.head_dim;
  int words = head_dim / Operand::kPack;
  int columns = (head_dim + kLanes - 1) / kLanes * kLanes;
  float scale_log2 = p.scale * 1.44269504f;

  uint32_t* queries;   // per head [num_lines][words]
  float* out;          // per head [num_lines][columns], not yet divided by the sums
  float* maximum;      // per head [num_lines]
  float* sum;          // per head [num_lines]
  int32_t* position;   // [num_lines]
  uint32_t* keys;      // [words][kBlockPositions]
  uint32_t* values;    // [kBlockPositions / kPack][columns]
  float* scores;       // [kTileLines][kBlockPositions]
  uint32_t* weights;   // [kTileLines][kBlockPositions / kPack]
  Element* converted;  // [kBlockPositions][head_dim], if T is not Element
  Element* zeros;      // [head_dim]: what positions past the last are packed from
  T* query;            // [head_dim]
  const void* rows[kBlockPositions];

  Workspace(const AttentionJob& of, const AttentionItem& to_do) : job(of), item(to_do) {
    carve(thread_scratch(carve(nullptr)));
  }

  size_t carve(std::byte* memory) {
    Carver carver{memory};
    const int64_t lines = int64_t{item.num_heads} * item.num_lines;
    queries = carver.take<uint32_t>(lines * words);
    out = carver.take<float>(lines * columns);
    maximum = carver.take<float>(lines);
    sum = carver.take<float>(lines);
    position = carver.take<int32_t>(item.num_lines);
    keys = carver.take<uint32_t>(words * kBlockPositions);
    values = carver.take<uint32_t>(kBlockPositions / Operand::kPack * columns);
    scores = carver.take<float>(kTileLines * kBlockPositions);
    weights = carver.take<uint32_t>(kTileLines * kBlockPositions / Operand::kPack);
    converted = carver.take<Element>(kBlockPositions * head_dim);
    zeros = carver.take<Element>(head_dim);
    query = carver.take<T>(head_dim);
    return carver.used;
  }
};

template <class T, class Operand>
RDK_KERNEL void start_lines(Workspace<T, Operand>& w) {
  using Element = typename Operand::Element;
  const RecurrentAttentionParams& p = w.p;
  for (int line = 0; line < w.item.num_lines; ++line) {
    const int64_t row = row_of(w.job, w.item, line);
    w.position[line] = w.job.rows[row].position;
    const float* cos_sin = p.cos_sin + int64_t{w.position[line]} * w.head_dim;
    for (int h = 0; h < w.item.num_heads; ++h) {
      const int64_t at = head_of(w.job, w.item, line, w.item.first_head + h) * int64_t{w.head_dim};
      const T* x = static_cast<const T*>(p.qkv) + row * p.qkv_stride + at;
      const T* bias = p.qk_bias ? static_cast<const T*>(p.qk_bias) + at : nullptr;
      rotate_head(x, bias, cos_sin, w.head_dim, p.interleaved != 0, w.query);
      const int64_t index = int64_t{h} * w.item.num_lines + line;
      Element* to = reinterpret_cast<Element*>(w.queries + index * w.words);
      for (int c = 0; c < w.head_dim; ++c) to[c] = from_float<Element>(to_float(w.query[c]));
      w.maximum[index] = -std::numeric_limits<float>::infinity();
      w.sum[index] = 0.0f;
    }
  }
  const int64_t floats = int64_t{w.item.num_heads} * w.item.num_lines * w.columns;
  __builtin_memset(w.out, 0, static_cast<size_t>(floats) * sizeof(float));
  __builtin_memset(w.zeros, 0, w.head_dim * sizeof(Element));
}

// w.rows: where the packing functions find the channels of one head, converted if need be, zeros
// past the last position. Asks for the memory of `next` meanwhile.
template <class T, class Operand>
RDK_KERNEL void gather_rows(Workspace<T, Operand>& w, const T* const* cells, int count, int head,
                            const T* const* next_cells, int next_count, int next_head) {
  using Element = typename Operand::Element;
  const int64_t offset = int64_t{head} * w.head_dim, next = int64_t{next_head} * w.head_dim;
  for (int i = 0; i < count; ++i) {
    const T* const from = cells[i] + offset;
    if (i < next_count) prefetch(next_cells[i] + next, w.head_dim * sizeof(T));
    if constexpr (std::is_same_v<T, Element>) {
      w.rows[i] = from;
    } else {
      Element* const to = w.converted + i * w.head_dim;
      for (int c = 0; c < w.head_dim; ++c) to[c] = from_float<Element>(to_float(from[c]));
      w.rows[i] = to;
    }
  }
  for (int i = count; i < kBlockPositions && i < count + kLanes; ++i) w.rows[i] = w.zeros;
}

// All lines of the h-th head of the item on the packed block of `count` positions from `first` on.
template <class T, class Operand>
RDK_KERNEL void attend_block(Workspace<T, Operand>& w, int h, int first, int count) {
  constexpr int kWeightWords = kBlockPositions / Operand::kPack;
  const int64_t head_lines = int64_t{h} * w.item.num_lines;
  for (int line = 0; line < w.item.num_lines; line += kTileLines) {
    const int lines = w.item.num_lines - line < kTileLines ? w.item.num_lines - line : kTileLines;
    if (w.position[line + lines - 1] < first) continue;  // none of them sees this block
    const int64_t index = head_lines + line;
    multiply<Operand>(w.queries + index * w.words, w.words, w.keys, kBlockPositions, w.words,
                      w.scores, kBlockPositions, lines, count, false);
    float* const out = w.out + index * w.columns;
    for (int i = 0; i < lines; ++i) {
      const int behind = w.position[line + i] + 1 - first;
      const float correction = weigh<Operand>(
          w.scores + i * kBlockPositions, behind < count ? behind : count, w.scale_log2,
          w.maximum[index + i], w.sum[index + i], w.weights + i * kWeightWords);
      if (correction == 1.0f) continue;
      for (int c = 0; c < w.columns; ++c) out[i * w.columns + c] *= correction;
    }
    multiply<Operand>(w.weights, kWeightWords, w.values, w.columns,
                      (count + Operand::kPack - 1) / Operand::kPack, out, w.columns, lines,
                      w.columns, true);
  }
}

// Divides by the sums of weights and writes the output, or leaves partial results.
template <class T, class Operand>
RDK_KERNEL void finish_lines(const Workspace<T, Operand>& w) {
  const RecurrentAttentionParams& p = w.p;
  for (int h = 0; h < w.item.num_heads; ++h) {
    for (int line = 0; line < w.item.num_lines; ++line) {
      const int64_t index = int64_t{h} * w.item.num_lines + line;
      const float* sums = w.out + index * w.columns;
      if (w.item.partial >= 0) {
        float* to = w.job.partials + (w.item.partial + index) * partial_floats(p);
        __builtin_memcpy(to, sums, w.head_dim * sizeof(float));
        to[w.head_dim] = w.maximum[index];
        to[w.head_dim + 1] = w.sum[index];
        continue;
      }
      const int64_t row = row_of(w.job, w.item, line);
      const int64_t head = head_of(w.job, w.item, line, w.item.first_head + h);
      T* to = static_cast<T*>(p.out) + (row * p.num_heads + head) * w.head_dim;
      const float scale = 1.0f / w.sum[index];
      for (int c = 0; c < w.head_dim; ++c) to[c] = from_float<T>(sums[c] * scale);
    }
  }
}

template <class T, class Operand>
void attend(const AttentionJob& job, const AttentionItem& item) {
  using Element = typename Operand::Element;
  Workspace<T, Operand> w(job, item);
  start_lines(w);
  Cells<T> cells[2];
  cells[0].find(w.p, item.sequence, item.first_position, item.last_position);
  int turn = 0;
  for (int first = item.first_position; first < item.last_position; first += kBlockPositions) {
    const Cells<T>& here = cells[turn];
    turn ^= 1;
    cells[turn].find(w.p, item.sequence, first + here.count, item.last_position);
    for (int h = 0; h < item.num_heads; ++h) {
      // Heads are neighbours in memory: while one is packed, the next one's channels are fetched.
      const bool is_last = h + 1 == item.num_heads;
      const Cells<T>& next = is_last ? cells[turn] : here;
      const int head = item.first_head + h, next_head = is_last ? item.first_head : head + 1;
      gather_rows(w, here.keys, here.count, head, next.keys, next.count, next_head);
      pack_keys(w.rows, here.count, w.words, w.keys);
      gather_rows(w, here.values, here.count, head, next.values, next.count, next_head);
      pack_values(reinterpret_cast<const Element* const*>(w.rows), here.count, w.head_dim, w.values,
                  w.columns);
      attend_block(w, h, first, here.count);
    }
  }
  finish_lines(w);
}

inline AttendFunction choose(int dtype, [[maybe_unused]] bool exact) {
#if RDK_BF16_DOT
  if (dtype == kRdkBFloat16 && !exact) return attend<bf16, Bf16Operand>;
#endif
  const auto visit = [](auto element) -> AttendFunction {
    return attend<decltype(element), FloatOperand>;
  };
  return for_dtype(dtype, visit, AttendFunction{});
}
