// From an element type's code (RdkDtype) to the type that the kernels compute with.
#pragma once

#include "rdkernels/api.h"
#include "rdkernels/kernels/numeric.h"

namespace rdk {

// Calls visit(T{}) with the element type that `dtype` names and returns its result, or returns
// `unknown` if there is no such type.
template <class Result = int, class Visit>
Result for_dtype(int dtype, Visit visit, Result unknown = kRdkUnknownDtype) {
  switch (dtype) {
#define RDK_VISIT(code, value, type, name) \
  case code:                               \
    return visit(type{});
    RDK_DTYPES(RDK_VISIT)
#undef RDK_VISIT
    default:
      return unknown;
  }
}

}  // namespace rdk
