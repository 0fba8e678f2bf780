// The rules of the wavefront, one meaning for all devices. Values in, values out: each device loads
// and parallelises in its own way.
//
// A sequence with c committed tokens has start = c - 1. Its row j sits at position start + j, has
// consumed the token there and predicts the next:
//
//   position   start        start+1      start+2      ...      end = start + rows
//   row        0            1            2                     (first fresh row)
//   consumed   committed    draft        draft
//   predicts   start+1      start+2      start+3               token that the fresh row will
//   consume
#pragma once

#include <cstdint>

#include "rdkernels/portability.h"

namespace rdk {

// The sequence that owns packed row `row`: the last b with bound(b) <= row, where bound(b) is
// cu_rows[b] and 0 <= row < bound(num_sequences). Sequences without rows own none.
template <class Bound>
RDK_HOST_DEVICE int sequence_of_row(int num_sequences, int64_t row, Bound bound) {
  int first = 0, last = num_sequences - 1;
  while (first < last) {
    const int middle = first + (last - first + 1) / 2;
    if (bound(middle) <= row) {
      first = middle;
    } else {
      last = middle - 1;
    }
  }
  return first;
}

// May row j be committed once all rows before it are? It must be settled, and must have consumed
// what the row before it predicts now; row 0 has consumed a committed token.
RDK_HOST_DEVICE bool may_commit(int64_t j, bool settled, int64_t consumed, int64_t predicted) {
  return settled && (j == 0 || consumed == predicted);
}

// Does committing row j use up the sequence's tokens? It commits the token at start + j + 1.
RDK_HOST_DEVICE bool reaches_limit(int64_t start, int64_t j, int64_t limit) {
  return start + j + 2 >= limit;
}

// The rows of a sequence's next outer step: `kept` continue rows of this one, `fresh` follow them.
struct NextRows {
  int64_t kept, fresh;
};
RDK_HOST_DEVICE NextRows next_rows(int64_t start, int64_t rows, int64_t committed, bool finished,
                                   int64_t limit, int64_t headway, int64_t max_wavefront) {
  if (rows == 0 || finished) return {0, 0};
  const int64_t kept = rows - committed;
  const int64_t front = limit - 1 - (start + rows);  // positions left before limit - 1
  int64_t fresh = headway < max_wavefront - kept ? headway : max_wavefront - kept;
  fresh = fresh < front ? fresh : front;
  return {kept, fresh > 0 ? fresh : 0};
}

}  // namespace rdk
