// What noise leaves of a state; one meaning for all devices.
#pragma once

#include <cmath>

#include "rdkernels/kernels/portability.h"

namespace rdk {

// The factor on the state beside noise of weight w; no state is left beyond w = 1. 1 - w^2 as a
// product, because the difference has few digits left where w is near 1.
RDK_HOST_DEVICE float kept_share(float weight, bool variance_preserving) {
  const float rest = 1.0f - weight;
  return variance_preserving ? sqrtf(fmaxf(rest * (1.0f + weight), 0.0f)) : rest;
}

}  // namespace rdk
