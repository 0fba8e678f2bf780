// How far a state has moved, from sums over its channels; one meaning for all devices.
#pragma once

#include <cfloat>
#include <cmath>

#include "rdkernels/portability.h"

enum RdkCriterion : int {
  kRdkLatentDiff = 0,  // |now - before| / |now|
  kRdkCosine = 1,      // 1 - cos(now, before)
};

namespace rdk {

// Sums over the channels of a row. latent-diff needs the first two, cosine all but `change`.
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

RDK_HOST_DEVICE float latent_difference(const ExitSums& sums) {
  const float change = sqrtf(sums.change);
  return change == 0.0f ? 0.0f : finite_or_far(change / sqrtf(sums.now));
}

RDK_HOST_DEVICE float cosine_distance(const ExitSums& sums) {
  const float norms = sqrtf(sums.now) * sqrtf(sums.before);
  return norms == 0.0f ? INFINITY : finite_or_far(1.0f - sums.product / norms);
}

}  // namespace rdk
