// The arguments that transformer_blocks and core_iterations have in common.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "arguments.h"
#include "rdkernels/transformer_blocks.h"

namespace rdk::binding {

// Layout of the rows, as in recurrent_attention.
struct RowArguments {
  const Tensor& cos_sin;                // [positions, d] float32
  const Tensor& page_table;             // [B, max_pages] int32
  const Tensor& cu_rows;                // [B + 1] int32
  const Tensor& start;                  // [B] int32
  const std::optional<Tensor>& active;  // [N] bool, or none
  double scale;
  bool interleaved;
};

class BlockTensors;

// A stack of blocks, checked. Holds copies of what is not laid out as the launchers want it; the
// parameters point into it.
class BlockStack {
 public:
  // `like` has the element type of the rows, of the caches and of all weights that are not int8,
  // and the device of everything; `rows` is N and `width` D. `weights` are those of a block with
  // norms of this placement, block after block, in the order of BlockTensor (block_arguments.cpp).
  BlockStack(const char* op, const Tensor& like, int64_t rows, int64_t width,
             const std::vector<Tensor>& weights, const std::vector<Tensor>& key_caches,
             const std::vector<Tensor>& value_caches, const RowArguments& row_arguments,
             const std::string& placement, double eps);
  BlockStack(const BlockStack&) = delete;
  BlockStack& operator=(const BlockStack&) = delete;

  // All but what is the op's own: hidden, out, last_norm and the workspace.
  const TransformerBlocksParams& params() const { return params_; }

 private:
  void check_block(const BlockTensors& w, const Tensor& key_cache, const Tensor& value_cache);
  void add_block(const BlockTensors& w, const Tensor& key_cache, const Tensor& value_cache);
  void set_layout(const RowArguments& rows);
  const void* keep(const Tensor& tensor);
  BlockLinear keep_linear(const BlockTensors& w, int matrix);

  const char* const op_;
  const Tensor like_;
  int64_t pages_ = 0;  // of every cache
  TransformerBlocksParams params_{};
  std::vector<TransformerBlock> blocks_;
  std::vector<Tensor> copies_;
};

// Memory for the launches of one call, 64-byte aligned. It belongs to the thread and is kept for
// the next call unless it is very large.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const;
};

}  // namespace rdk::binding
