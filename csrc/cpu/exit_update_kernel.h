// The kernel of exit_update; included once per instruction set (instruction_sets.h).

#include "row_vectors.h"

// The sums that the criterion needs.
template <class T>
RDK_KERNEL ExitSums exit_sums(const T* state, const T* previous, int64_t width, int criterion) {
  Sums<4> now_squares, changes;
  if (criterion == kRdkLatentDiff) {
    for_each_vector<4>(width, [&](auto span, int turn) {
      const Floats now = read(state, span), change = now - read(previous, span);
      now_squares.add(turn, now * now);
      changes.add(turn, change * change);
    });
    return {now_squares.total(), changes.total()};
  }
  Sums<4> before_squares, products;
  for_each_vector<4>(width, [&](auto span, int turn) {
    const Floats now = read(state, span), before = read(previous, span), change = now - before;
    now_squares.add(turn, now * now);
    changes.add(turn, change * change);
    before_squares.add(turn, before * before);
    products.add(turn, now * before);
  });
  return {now_squares.total(), changes.total(), before_squares.total(), products.total()};
}

template <class T>
[[gnu::flatten]] void exit_update_rows(const ExitUpdateParams& p, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    p.delta[row] = 0.0f;
    p.converged[row] = 0;
    if (p.active != nullptr && !p.active[row]) continue;
    const T* const state = static_cast<const T*>(p.state) + row * p.state_stride;
    const T* const previous =
        static_cast<const T*>(p.previous_state) + row * p.previous_state_stride;
    p.delta[row] = exit_delta(p.criterion, exit_sums(state, previous, p.width, p.criterion));
    p.converged[row] = p.delta[row] < p.threshold;
    p.depth[row] += p.iterations;
  }
}

inline RowsFunction<ExitUpdateParams> choose(int dtype) {
  return RDK_INSTANCE(exit_update_rows, dtype);
}
