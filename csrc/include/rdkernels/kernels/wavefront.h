// The rules of the wavefront, one meaning for all devices. Values in, values out: each device loads
// and parallelises in its own way.
//
// A sequence with c committed tokens has start = c - 1. Its row j sits at position start + j, has
// consumed the token there and predicts the next:
//
//   position   start        start+1      start+2      ...      start + rows
//   row        0            1            2                     (first fresh row)
//   consumed   committed    draft        draft
//   predicts   start+1      start+2      start+3               (token that it will consume)
//
// Tokens before position `known` are given: what a row predicts there is the token that is there.
#pragma once

#include <cstdint>

#include "rdkernels/kernels/portability.h"

namespace rdk {

// Does committing row j use up the sequence's tokens? It commits the token at start + j + 1.
RDK_HOST_DEVICE bool reaches_limit(int64_t start, int64_t j, int64_t limit) {
  return start + j + 2 >= limit;
}

// One sequence at the end of an outer step.
struct SequenceStep {
  int64_t start, rows;  // the position of the first row, and how many are in flight
  int64_t limit, known;
  int64_t committed;  // of the rows, from the first one on
  bool finished;
  bool restart;    // rows that stay in flight keep the tokens that they have consumed, and
  bool corrected;  // the last committed row predicts another token than the next row consumed
};

// Are all rows that were not committed void, whatever they predict?
RDK_HOST_DEVICE bool drops_rows(const SequenceStep& s) {
  return s.restart && s.committed < s.rows && (s.finished || s.corrected);
}

// The first position that no row is left for. A row predicts its token.
RDK_HOST_DEVICE int64_t front_position(const SequenceStep& s) {
  return s.start + (drops_rows(s) ? s.committed : s.rows);
}

// Rows that stay in flight; they become the first of the next outer step.
RDK_HOST_DEVICE int64_t rows_kept(const SequenceStep& s) {
  return s.finished ? 0 : front_position(s) - s.start - s.committed;
}

// Fresh rows after them. Only rows from position known - 1 on count towards max_wavefront.
RDK_HOST_DEVICE int64_t rows_added(const SequenceStep& s, int64_t headway, int64_t max_wavefront) {
  if (s.rows == 0 || s.finished) return 0;
  const int64_t front = front_position(s), next_start = s.start + s.committed;
  const int64_t counted_from = s.known - 1 > next_start ? s.known - 1 : next_start;
  const int64_t room = max_wavefront - (front > counted_from ? front - counted_from : 0);
  const int64_t uncounted = s.known - 1 > front ? s.known - 1 - front : 0;
  const int64_t positions = s.limit - 1 - front;
  int64_t fresh = headway - uncounted < room ? headway : room + uncounted;
  fresh = fresh < positions ? fresh : positions;
  return fresh > 0 ? fresh : 0;
}

// Where the token of a position comes from that a row of the next outer step consumes.
struct TokenOrigin {
  bool in_place;  // tokens[index] holds it,
  int64_t index;  // or row `index` of the sequence predicts it
};
RDK_HOST_DEVICE TokenOrigin token_origin(const SequenceStep& s, int64_t position) {
  const int64_t front = front_position(s);
  // Past the front and what is known there is no prediction: a row starts from the token before.
  int64_t from = position;
  if (position > front && position >= s.known) from = front > s.known - 1 ? front : s.known - 1;
  if (from < s.known || from == s.start || (s.restart && from < front)) return {true, from};
  return {false, from - s.start - 1};
}

// The positions [first, end) whose tokens change.
struct TokenRange {
  int64_t first, end;
};
RDK_HOST_DEVICE TokenRange written_tokens(const SequenceStep& s, int64_t fresh) {
  const int64_t front = front_position(s);
  const int64_t first = s.restart ? front : s.start + 1;
  return {first > s.known ? first : s.known, front + (fresh > 1 ? fresh : 1)};
}

}  // namespace rdk
