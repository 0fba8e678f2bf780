// The kernel of sample_tokens; included once per instruction set (instruction_sets.h). A row of
// logits is read a few times from cache; nothing is sorted.
//
//   greedy     largest logit; then the first token that has it
//   sampling   largest logit; a threshold from each of top-k, top-p and min-p; then noise for the
//              chunks of tokens with one above the threshold: first in fp32, to see which may win,
//              then for those few in fp64 as the specification has it

template <class T>
RDK_KERNEL float number(T logit) {
  const float x = to_float(logit);
  return x == x ? x : -std::numeric_limits<float>::infinity();
}

template <class T>
RDK_KERNEL float largest_logit(const T* logits, int64_t vocabulary) {
  float largest = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < vocabulary; ++i) {
    const float x = number(logits[i]);
    largest = x > largest ? x : largest;
  }
  return largest;
}

// The first token whose logit is `value`, which one has.
template <class T>
RDK_KERNEL int64_t first_token(const T* logits, int64_t vocabulary, float value) {
  constexpr int64_t kStep = 256;  // in a loop without exit, which can be vectorised
  int64_t token = 0;
  for (; token + kStep <= vocabulary; token += kStep) {
    int found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t i = 0; i < kStep; ++i) found |= to_float(logits[token + i]) == value;
    if (found) break;
  }
  while (token + 1 < vocabulary && to_float(logits[token]) != value) ++token;
  return token;
}

// The sum of exp((x - largest) / temperature) over logits x >= smallest.
template <class T>
RDK_KERNEL double total_mass(const T* logits, int64_t vocabulary, float smallest, float largest,
                             float temperature) {
  constexpr int64_t kStep = 256;  // summed in fp32
  double total = 0.0;
  for (int64_t first = 0; first < vocabulary; first += kStep) {
    const int64_t count = std::min(kStep, vocabulary - first);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; ++i) {
      const float x = number(logits[first + i]);
      const float mass = x == largest ? 1.0f : exp((x - largest) / temperature);
      sum += x >= smallest ? mass : 0.0f;
    }
    total += static_cast<double>(sum);
  }
  return total;
}

// Tokens with a logit below this are not kept, or cannot win.
template <class T>
RDK_KERNEL float keep_threshold(const SampleTokensParams& p, const T* logits, float largest) {
  const float temperature = static_cast<float>(p.temperature);
  // If the largest logit is infinite, offsets may give NaN, which fmax ignores: nothing is lost, as
  // infinite logits win anyway.
  float threshold = std::fmax(largest - static_cast<float>(p.temperature * kGumbelRange),
                              largest + p.min_p_offset);
  const bool use_top_k = p.top_k > 0 && p.top_k < p.vocabulary;
  if (!use_top_k && !(p.top_p < 1.0f)) return threshold;

  // top-k and top-p look at the largest logits, so what cannot win may be left out; only the
  // total for top-p needs all that top-k keeps.
  float* const candidates = thread_floats(p.vocabulary);
  float* end = candidates;
  const float reach = largest - static_cast<float>(p.temperature * kGumbelRange);
  for (int64_t i = 0; i < p.vocabulary; ++i) {
    const float x = number(logits[i]);
    if (!(x < reach)) *end++ = x;
  }
  float smallest = -std::numeric_limits<float>::infinity();
  if (use_top_k && end - candidates > p.top_k) {
    smallest = smallest_kept(candidates, end, static_cast<double>(p.top_k), CountOf{});
    threshold = std::fmax(threshold, smallest);
  }
  if (p.top_p < 1.0f) {
    const double total = total_mass(logits, p.vocabulary, smallest, largest, temperature);
    const MassOf mass{smallest, largest, temperature};
    threshold = std::fmax(threshold, smallest_kept(candidates, end, p.top_p * total, mass));
  }
  return threshold;
}

// The best token at or above the threshold.
template <class T>
RDK_KERNEL int64_t best_noisy_token(const SampleTokensParams& p, const T* logits,
                                    const RandomKey& key, float threshold) {
  const float temperature = static_cast<float>(p.temperature);
  uint32_t bits[kRandomChunk];
  float rough[kRandomChunk];
  int64_t best_token = 0;
  double best = -std::numeric_limits<double>::infinity();
  for (int64_t first = 0; first < p.vocabulary; first += kRandomChunk) {
    const int64_t count = std::min<int64_t>(kRandomChunk, p.vocabulary - first);
    int any = 0;
#pragma omp simd reduction(| : any)
    for (int64_t i = 0; i < count; ++i) any |= to_float(logits[first + i]) >= threshold;
    if (!any) continue;
    random_words(key, first, bits);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      rough[i] = to_float(logits[first + i]) + temperature * approximate_gumbel(bits[i]);
    }
    for (int64_t i = 0; i < count; ++i) {
      const float logit = to_float(logits[first + i]);
      // More than a score in fp32 can be off by: the noise's error, and a few roundings.
      const float slack = temperature * (5.0f * kGumbelError) + 5e-7f * std::fabs(logit);
      if (!(logit >= threshold) || rough[i] + slack < best) continue;
      const double score = static_cast<double>(logit) + p.temperature * gumbel(bits[i]);
      if (score > best) {
        best = score;
        best_token = first + i;
      }
    }
  }
  return best_token;
}

template <class T>
[[gnu::flatten]] void sample_tokens_rows(const SampleTokensParams& p, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const T* logits = static_cast<const T*>(p.logits) + row * p.logits_stride;
    const float largest = largest_logit(logits, p.vocabulary);
    if (largest == -std::numeric_limits<float>::infinity()) {
      p.out[row] = 0;
    } else if (p.temperature == 0.0) {
      p.out[row] = first_token(logits, p.vocabulary, largest);
    } else {
      // One draw per (sequence, position), whatever the step: a token settles when its logits do.
      const int32_t* row_key = p.row_keys + row * p.row_keys_stride;
      const RandomKey key = random_key(row_key[0], row_key[1], /*step=*/0, p.seed, kStreamSampling);
      p.out[row] = best_noisy_token(p, logits, key, keep_threshold(p, logits, largest));
    }
  }
}

inline RowsFunction<SampleTokensParams> choose(int dtype) {
  return RDK_INSTANCE(sample_tokens_rows, dtype);
}
