// How far a state has moved, from sums over its channels; one meaning for all devices.
#pragma once

#include <cfloat>
#include <cmath>

#include "rdkernels/exit_update.h"
#include "rdkernels/kernels/portability.h"

namespace rdk {

// Sums over the channels of a row. latent-diff needs the first two, cosine all.
struct ExitSums {
  float now = 0.0f;      // now^2
  float change = 0.0f;   // (now - before)^2
  float before = 0.0f;   // before^2
  float product = 0.0f;  // now * before
};

// What cannot be measured is infinitely far, so that NaN never counts as converged; -infinity, of
// overflowing products, becomes the least float, as in torch.nan_to_num.
RDK_HOST_DEVICE float finite_or_far(float delta) {
  if (!(delta <= FLT_MAX)) return INFINITY;
  return delta < -FLT_MAX ? -FLT_MAX : delta;
}

// Equal states have not moved, whatever their size and the rounding of the quotients.
RDK_HOST_DEVICE float exit_delta(int criterion, const ExitSums& sums) {
  const float change = sqrtf(sums.change), size = sqrtf(sums.now);
  if (change == 0.0f) return 0.0f;
  if (criterion == kRdkLatentDiff) return finite_or_far(change / size);
  const float norms = size * sqrtf(sums.before);
  return norms == 0.0f ? INFINITY : finite_or_far(1.0f - sums.product / norms);
}

}  // namespace rdk
