#include "rdkernels/advance_wavefront.h"

#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

#include "arguments.h"
#include "launch.h"

namespace rdk::binding {
namespace {

constexpr const char* kOp = "advance_wavefront";

int launch_cpu(const AdvanceWavefrontParams* params, int, RdkParallelFor parallel_for) {
  return rdk_advance_wavefront_cpu(params, parallel_for);
}
#ifdef RDK_WITH_CUDA
int launch_cuda(const AdvanceWavefrontParams* params, int, void* stream) {
  return rdk_advance_wavefront_cuda(params, stream);
}
#else
constexpr CudaLauncher<AdvanceWavefrontParams> launch_cuda = nullptr;
#endif

template <class T>
const T* read(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* write(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// On the CPU: fails unless rows and positions exist.
void check_positions(const AdvanceWavefrontParams& p) {
  check_row_bounds(kOp, p.cu_rows, p.num_sequences, p.num_rows);
  for (int b = 0; b < p.num_sequences; ++b) {
    if (p.cu_rows[b + 1] > p.cu_rows[b] && p.start[b] < 0) {
      fail(kOp, "start", "positions >= 0", std::to_string(p.start[b]));
    }
  }
}

// tokens: [B, T] int64   start: [B] int32   done: [B] bool   committed_depth: [B, T] int32; written
// sampled: [N] int64   settled: [N] bool   depth: [N] int32   cu_rows: [B + 1] int32
// limit, known, sequence_ids: [B] int32   stop_tokens: [S] int64
// next_cu_rows: [B + 1]   source_row: [C]   committed: [B]   row_keys: [C, 3]; int32
// row_tokens: [C] int64
void advance_wavefront_out(const Tensor& tokens, const Tensor& start, const Tensor& done,
                           const Tensor& committed_depth, const Tensor& sampled,
                           const Tensor& settled, const Tensor& depth, const Tensor& cu_rows,
                           const Tensor& limit, const Tensor& known, const Tensor& sequence_ids,
                           const Tensor& stop_tokens, int64_t headway, int64_t max_wavefront,
                           bool restart, const Tensor& next_cu_rows, const Tensor& source_row,
                           const Tensor& committed, const Tensor& row_tokens,
                           const Tensor& row_keys) {
  constexpr auto kInt = ScalarType::Int, kLong = ScalarType::Long;
  expect_tensor(kOp, "tokens", tokens, {kAny, kAny}, kLong, tokens);
  expect_tensor(kOp, "sampled", sampled, {kAny}, kLong, tokens);
  const int64_t batch = tokens.size(0), length = tokens.size(1), rows = sampled.size(0);
  expect_written(kOp, "tokens", tokens, {batch, length}, kLong, tokens);
  expect_written(kOp, "start", start, {batch}, kInt, tokens);
  expect_written(kOp, "done", done, {batch}, ScalarType::Bool, tokens);
  expect_written(kOp, "committed_depth", committed_depth, {batch, length}, kInt, tokens);
  expect_tensor(kOp, "settled", settled, {rows}, ScalarType::Bool, tokens);
  expect_tensor(kOp, "depth", depth, {rows}, kInt, tokens);
  expect_tensor(kOp, "cu_rows", cu_rows, {batch + 1}, kInt, tokens);
  expect_tensor(kOp, "limit", limit, {batch}, kInt, tokens);
  expect_tensor(kOp, "known", known, {batch}, kInt, tokens);
  expect_tensor(kOp, "sequence_ids", sequence_ids, {batch}, kInt, tokens);
  expect_tensor(kOp, "stop_tokens", stop_tokens, {kAny}, kLong, tokens);
  if (headway < 1) fail(kOp, "headway", "at least 1", std::to_string(headway));
  if (max_wavefront < 1) fail(kOp, "max_wavefront", "at least 1", std::to_string(max_wavefront));
  expect_written(kOp, "next_cu_rows", next_cu_rows, {batch + 1}, kInt, tokens);
  expect_written(kOp, "source_row", source_row, {kAny}, kInt, tokens);
  const int64_t capacity = source_row.size(0);
  expect_written(kOp, "committed", committed, {batch}, kInt, tokens);
  expect_written(kOp, "row_tokens", row_tokens, {capacity}, kLong, tokens);
  expect_written(kOp, "row_keys", row_keys, {capacity, 3}, kInt, tokens);
  const Tensor samples = with_contiguous_rows(sampled), ready = with_contiguous_rows(settled);
  const Tensor depths = with_contiguous_rows(depth), bounds = with_contiguous_rows(cu_rows);
  const Tensor limits = with_contiguous_rows(limit), knowns = with_contiguous_rows(known);
  const Tensor ids = with_contiguous_rows(sequence_ids), stops = with_contiguous_rows(stop_tokens);

  AdvanceWavefrontParams params{};
  params.tokens = write<int64_t>(tokens);
  params.start = write<int32_t>(start);
  params.done = write<uint8_t>(done);
  params.committed_depth = write<int32_t>(committed_depth);
  params.sampled = read<int64_t>(samples);
  params.settled = read<uint8_t>(ready);
  params.depth = read<int32_t>(depths);
  params.cu_rows = read<int32_t>(bounds);
  params.limit = read<int32_t>(limits);
  params.known = read<int32_t>(knowns);
  params.sequence_ids = read<int32_t>(ids);
  params.stop_tokens = read<int64_t>(stops);
  params.next_cu_rows = write<int32_t>(next_cu_rows);
  params.source_row = write<int32_t>(source_row);
  params.committed = write<int32_t>(committed);
  params.row_tokens = write<int64_t>(row_tokens);
  params.row_keys = write<int32_t>(row_keys);
  params.num_rows = rows;
  params.capacity = capacity;
  params.max_length = length;
  params.tokens_stride = tokens.stride(0);
  params.committed_depth_stride = committed_depth.stride(0);
  params.row_keys_stride = row_keys.stride(0);
  params.num_stop_tokens = stop_tokens.size(0);
  params.headway = headway;
  params.max_wavefront = max_wavefront;
  params.num_sequences = static_cast<int>(batch);
  params.restart = restart;
  if (!tokens.is_cuda()) check_positions(params);
  constexpr int kNoDtype = 0;
  launch(kOp, params, kNoDtype, tokens, launch_cpu, launch_cuda);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> advance_wavefront(
    const Tensor& tokens, const Tensor& start, const Tensor& done, const Tensor& committed_depth,
    const Tensor& sampled, const Tensor& settled, const Tensor& depth, const Tensor& cu_rows,
    const Tensor& limit, const Tensor& known, const Tensor& sequence_ids, const Tensor& stop_tokens,
    int64_t headway, int64_t max_wavefront, bool restart) {
  expect_tensor(kOp, "tokens", tokens, {kAny, kAny}, ScalarType::Long, tokens);
  expect_tensor(kOp, "sampled", sampled, {kAny}, ScalarType::Long, tokens);
  if (headway < 1) fail(kOp, "headway", "at least 1", std::to_string(headway));
  const int64_t batch = tokens.size(0), capacity = sampled.size(0) + batch * headway;
  const auto int32 = ScalarType::Int;
  const Tensor next_cu_rows = torch::stable::new_empty(tokens, {batch + 1}, int32);
  const Tensor source_row = torch::stable::new_empty(tokens, {capacity}, int32);
  const Tensor committed = torch::stable::new_empty(tokens, {batch}, int32);
  const Tensor row_tokens = torch::stable::new_empty(tokens, {capacity});
  const Tensor row_keys = torch::stable::new_empty(tokens, {capacity, 3}, int32);
  advance_wavefront_out(tokens, start, done, committed_depth, sampled, settled, depth, cu_rows,
                        limit, known, sequence_ids, stop_tokens, headway, max_wavefront, restart,
                        next_cu_rows, source_row, committed, row_tokens, row_keys);
  return {next_cu_rows, source_row, committed, row_tokens, row_keys};
}

RDK_REGISTER(advance_wavefront)

}  // namespace
}  // namespace rdk::binding
