#include "rdkernels/sample_tokens.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "math.h"
#include "random.h"

namespace rdk::cpu {
namespace {

// More than the noise of two tokens can differ by: one that is further from the largest logit, in
// units of the temperature, cannot win.
constexpr float kGumbelRange = 20.25f;
static_assert(kGumbelRange > kLargestGumbel - kSmallestGumbel, "every draw must fit the range");

// Memory of the calling thread for so many floats, kept for the next call.
float* thread_floats(int64_t count) {
  static thread_local std::vector<float> floats;
  if (floats.size() < static_cast<size_t>(count)) floats.resize(static_cast<size_t>(count));
  return floats.data();
}

// The weights of a logit for top-k and top-p.
struct CountOf {
  double operator()(float) const { return 1.0; }
};
struct MassOf {
  float smallest, largest, temperature;

  double operator()(float x) const {
    if (!(x >= smallest)) return 0.0;
    // The difference of two infinities would be NaN.
    return x == largest ? 1.0 : std::exp((x - largest) / temperature);
  }
};

// The smallest of the logits [first, last) with less than `limit` weight strictly above it. Reorders
// them; an average of two passes over them, like a quickselect. It is compiled once, for the least
// instruction set: there are no vectors in it, and std::partition would call functions of another
// target where it inlines these.
template <class WeightOf>
[[gnu::noinline]] float smallest_kept(float* first, float* last, double limit, WeightOf weight_of) {
  double above = 0.0;  // weight of what was larger and is out of [first, last)
  while (true) {
    const float a = *first, b = first[(last - first) / 2], c = last[-1];
    const float pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
    float* const larger_end = std::partition(first, last, [=](float x) { return x > pivot; });
    float* const equal_end = std::partition(larger_end, last, [=](float x) { return x == pivot; });
    double larger = 0.0;
    for (const float* at = first; at != larger_end; ++at) larger += weight_of(*at);
    const double equal = static_cast<double>(equal_end - larger_end) * weight_of(pivot);
    if (above + larger >= limit) {
      last = larger_end;
    } else if (above + larger + equal >= limit || equal_end == last) {
      return pivot;
    } else {
      above += larger + equal;
      first = equal_end;
    }
  }
}

}  // namespace
}  // namespace rdk::cpu

#define RDK_KERNEL_FILE "sample_tokens_kernel.h"
#include "instruction_sets.h"

extern "C" int rdk_sample_tokens_cpu(const SampleTokensParams* p, int dtype,
                                     RdkParallelFor parallel_for) {
  using namespace rdk::cpu;
  return run_rows(RDK_BEST(choose(dtype)), *p, p->rows, p->vocabulary, parallel_for);
}
