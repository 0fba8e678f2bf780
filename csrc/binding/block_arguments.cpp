#include "block_arguments.h"

#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <new>
#include <string>

#include "attention_arguments.h"

namespace rdk::binding {
namespace {

// The weights of a block, in this order, without the norms that its placement does not have. Empty
// where a block has none: qk_bias, and the scales of matrices that are not int8. The order is that
// of BLOCK_TENSORS in rdkernels/backends/eager_blocks.py; a test holds them together by the names.
enum BlockTensor {
  kNorm1,
  kNorm2,
  kNorm3,
  kNorm4,
  kWqkv,
  kQkBias,
  kAttnProj,
  kMlpFc,
  kMlpProj,
  kWqkvScale,
  kAttnProjScale,
  kMlpFcScale,
  kMlpProjScale,
  kBlockTensors,
};
constexpr const char* kNames[kBlockTensors] = {
    "norm_1",          "norm_2",       "norm_3",         "norm_4",   "wqkv",
    "qk_bias",         "attn_proj",    "mlp_fc",         "mlp_proj", "wqkv_scale",
    "attn_proj_scale", "mlp_fc_scale", "mlp_proj_scale",
};

bool has_norm(int placement, int norm) {
  switch (placement) {
    case kRdkPre:
      return norm == kNorm1 || norm == kNorm3;
    case kRdkPost:
      return norm == kNorm2 || norm == kNorm4;
    default:
      return true;
  }
}

int placement_of(const char* op, const std::string& placement) {
  if (placement == "sandwich") return kRdkSandwich;
  if (placement == "pre") return kRdkPre;
  if (placement == "post") return kRdkPost;
  fail(op, "placement", "one of ('sandwich', 'pre', 'post')", "'" + placement + "'");
}

int scale_of(int matrix) {
  switch (matrix) {
    case kWqkv:
      return kWqkvScale;
    case kAttnProj:
      return kAttnProjScale;
    case kMlpFc:
      return kMlpFcScale;
    default:
      return kMlpProjScale;
  }
}

bool is_int8(const Tensor& weight) { return weight.scalar_type() == ScalarType::Char; }

std::string element_of(const char* list, int64_t index) {
  return std::string(list) + "[" + std::to_string(index) + "]";
}

// Where the tensors of a block with such norms are.
struct Order {
  explicit Order(int placement) {
    for (int tensor = 0; tensor < kBlockTensors; ++tensor) {
      position[tensor] = tensor > kNorm4 || has_norm(placement, tensor) ? count++ : -1;
    }
  }
  int position[kBlockTensors];  // -1: not there
  int count = 0;                // tensors of one block
};

}  // namespace

// The tensors of one block among those of all.
class BlockTensors {
 public:
  BlockTensors(const std::vector<Tensor>& weights, const Order& order, int64_t block)
      : weights_(weights), order_(order), block_(block) {}
  bool has(int tensor) const { return order_.position[tensor] >= 0; }
  const Tensor& operator[](int tensor) const { return weights_[index(tensor)]; }
  std::string name_of(int tensor) const {
    return element_of("weights", static_cast<int64_t>(index(tensor))) + " (" + kNames[tensor] +
           " of block " + std::to_string(block_) + ")";
  }

 private:
  size_t index(int tensor) const {
    return static_cast<size_t>(block_ * order_.count + order_.position[tensor]);
  }

  const std::vector<Tensor>& weights_;
  const Order& order_;
  const int64_t block_;
};

namespace {

bool has_bias(const BlockTensors& w) { return w[kQkBias].dim() != 1 || w[kQkBias].numel() != 0; }

// Names are spelled out only for a message: a call checks hundreds of tensors.
bool is_cpu_tensor(const Tensor& tensor, Shape shape, ScalarType dtype) {
  if (tensor.dim() != static_cast<int64_t>(shape.size())) return false;
  int64_t dimension = 0;
  for (const int64_t size : shape) {
    if (size != kAny && size != tensor.size(dimension)) return false;
    ++dimension;
  }
  return tensor.scalar_type() == dtype && tensor.is_cpu();
}

void expect_weight(const char* op, const BlockTensors& w, int index, Shape shape, ScalarType dtype,
                   const Tensor& like) {
  if (is_cpu_tensor(w[index], shape, dtype)) return;
  expect_tensor(op, w.name_of(index).c_str(), w[index], shape, dtype, like);
}

void expect_weight(const char* op, const BlockTensors& w, int index, Shape shape,
                   const Tensor& like) {
  expect_weight(op, w, index, shape, like.scalar_type(), like);
}

// A matrix may be int8.
void expect_matrix(const char* op, const BlockTensors& w, int index, Shape shape,
                   const Tensor& like) {
  expect_weight(op, w, index, shape, weight_type(w[index], like), like);
}

// An int8 matrix has a scale for each of its rows; any other has an empty one.
void expect_scale(const char* op, const BlockTensors& w, int matrix, const Tensor& like) {
  const int index = scale_of(matrix);
  if (is_int8(w[matrix])) {
    expect_weight(op, w, index, {w[matrix].size(0)}, ScalarType::Float, like);
  } else if (w[index].numel() != 0) {
    fail(op, w.name_of(index).c_str(), "an empty tensor for a weight that is not int8",
         describe(w[index]));
  }
}

void expect_caches(const char* op, int64_t block, const Tensor& key_cache,
                   const Tensor& value_cache, Shape shape, const Tensor& like) {
  const std::string key = element_of("key_caches", block),
                    value = element_of("value_caches", block);
  expect_like(op, key.c_str(), key_cache, shape, like);
  const int64_t pages = key_cache.size(0), page_size = key_cache.size(1);
  if (page_size < 1) fail(op, key.c_str(), "pages of at least one cell", describe(key_cache));
  expect_like(op, value.c_str(), value_cache,
              {pages, page_size, key_cache.size(2), key_cache.size(3)}, like);
  expect_contiguous_pages(op, key.c_str(), key_cache);
  expect_contiguous_pages(op, value.c_str(), value_cache);
  if (pages > 1 && key_cache.stride(0) != value_cache.stride(0)) {
    fail(op, value.c_str(), "the strides of " + key, "other strides");
  }
}

void expect_count(const char* op, const char* argument, size_t count, size_t expected) {
  if (count == expected) return;
  fail(op, argument, std::to_string(expected) + " tensors, one per block",
       std::to_string(count) + " tensors");
}

}  // namespace

BlockStack::BlockStack(const char* op, const Tensor& like, int64_t rows, int64_t width,
                       const std::vector<Tensor>& weights, const std::vector<Tensor>& key_caches,
                       const std::vector<Tensor>& value_caches, const RowArguments& row_arguments,
                       const std::string& placement, double eps)
    : op_(op), like_(like) {
  params_.placement = placement_of(op, placement);
  const Order order(params_.placement);
  const size_t per_block = static_cast<size_t>(order.count), blocks = weights.size() / per_block;
  if (blocks == 0 || weights.size() % per_block != 0) {
    fail(op, "weights", std::to_string(per_block) + " tensors for each of at least one block",
         std::to_string(weights.size()) + " tensors");
  }
  expect_count(op, "key_caches", key_caches.size(), blocks);
  expect_count(op, "value_caches", value_caches.size(), blocks);
  params_.width = width;
  params_.eps = static_cast<float>(eps);
  params_.attention.num_rows = static_cast<int32_t>(rows);
  blocks_.reserve(blocks);
  for (size_t i = 0; i < blocks; ++i) {
    const BlockTensors tensors(weights, order, static_cast<int64_t>(i));
    check_block(tensors, key_caches[i], value_caches[i]);
    add_block(tensors, key_caches[i], value_caches[i]);
  }
  params_.blocks = blocks_.data();
  params_.num_blocks = static_cast<int64_t>(blocks);
  set_layout(row_arguments);
}

// A pointer to contiguous elements of `tensor`: its own, or a copy's.
const void* BlockStack::keep(const Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor.const_data_ptr();
  copies_.push_back(torch::stable::contiguous(tensor));
  return copies_.back().const_data_ptr();
}

BlockLinear BlockStack::keep_linear(const BlockTensors& w, int matrix) {
  if (!is_int8(w[matrix])) return {keep(w[matrix]), nullptr};
  return {keep(w[matrix]), static_cast<const float*>(keep(w[scale_of(matrix)]))};
}

// The first block sets the sizes that all have.
void BlockStack::check_block(const BlockTensors& w, const Tensor& key_cache,
                             const Tensor& value_cache) {
  const int64_t block = static_cast<int64_t>(blocks_.size()), width = params_.width;
  RecurrentAttentionParams& a = params_.attention;
  expect_matrix(op_, w, kWqkv, {kAny, width}, like_);
  expect_matrix(op_, w, kMlpFc, {kAny, width}, like_);
  if (block == 0) {
    expect_caches(op_, 0, key_cache, value_cache, {kAny, kAny, kAny, kAny}, like_);
    a.num_heads = static_cast<int32_t>(
        heads_of(op_, w.name_of(kWqkv).c_str(), w[kWqkv], 0, "key_caches[0]", key_cache));
    a.page_size = static_cast<int32_t>(key_cache.size(1));
    a.num_kv_heads = static_cast<int32_t>(key_cache.size(2));
    a.head_dim = static_cast<int32_t>(key_cache.size(3));
    if (w[kMlpFc].size(0) % 2 != 0) {
      fail(op_, w.name_of(kMlpFc).c_str(), "an even first size (gate | up)", describe(w[kMlpFc]));
    }
    params_.mlp_width = w[kMlpFc].size(0) / 2;
    pages_ = key_cache.size(0);
  } else {
    const Shape shape = {pages_, a.page_size, a.num_kv_heads, a.head_dim};
    expect_caches(op_, block, key_cache, value_cache, shape, like_);
  }
  const int64_t heads = a.num_heads, kv_heads = a.num_kv_heads, d = a.head_dim;
  for (const int norm : {kNorm1, kNorm2, kNorm3, kNorm4}) {
    if (w.has(norm)) expect_weight(op_, w, norm, {width}, like_);
  }
  expect_matrix(op_, w, kWqkv, {(heads + 2 * kv_heads) * d, width}, like_);
  expect_matrix(op_, w, kAttnProj, {width, heads * d}, like_);
  expect_matrix(op_, w, kMlpFc, {2 * params_.mlp_width, width}, like_);
  expect_matrix(op_, w, kMlpProj, {width, params_.mlp_width}, like_);
  if (has_bias(w)) expect_weight(op_, w, kQkBias, {heads + kv_heads, d}, like_);
  for (const int matrix : {kWqkv, kAttnProj, kMlpFc, kMlpProj}) {
    expect_scale(op_, w, matrix, like_);
  }
}

void BlockStack::add_block(const BlockTensors& w, const Tensor& key_cache,
                           const Tensor& value_cache) {
  const auto norm = [&](int tensor) { return w.has(tensor) ? keep(w[tensor]) : nullptr; };
  TransformerBlock found{};
  found.norm_1 = norm(kNorm1);
  found.norm_2 = norm(kNorm2);
  found.norm_3 = norm(kNorm3);
  found.norm_4 = norm(kNorm4);
  found.wqkv = keep_linear(w, kWqkv);
  found.qk_bias = has_bias(w) ? keep(w[kQkBias]) : nullptr;
  found.attn_proj = keep_linear(w, kAttnProj);
  found.mlp_fc = keep_linear(w, kMlpFc);
  found.mlp_proj = keep_linear(w, kMlpProj);
  found.key_cache = key_cache.mutable_data_ptr();
  found.value_cache = value_cache.mutable_data_ptr();
  found.cache_page_stride = key_cache.stride(0);
  blocks_.push_back(found);
}

void BlockStack::set_layout(const RowArguments& rows) {
  RecurrentAttentionParams& a = params_.attention;
  const auto expect_int32 = [&](const char* argument, const Tensor& tensor, Shape shape) {
    expect_tensor(op_, argument, tensor, shape, ScalarType::Int, like_);
  };
  expect_tensor(op_, "cos_sin", rows.cos_sin, {kAny, a.head_dim}, ScalarType::Float, like_);
  expect_int32("start", rows.start, {kAny});
  const int64_t sequences = rows.start.size(0);
  expect_int32("cu_rows", rows.cu_rows, {sequences + 1});
  expect_int32("page_table", rows.page_table, {sequences, kAny});
  if (rows.active) {
    expect_tensor(op_, "active", *rows.active, {a.num_rows}, ScalarType::Bool, like_);
    a.active = static_cast<const uint8_t*>(keep(*rows.active));
  }
  const Tensor table = with_contiguous_rows(rows.page_table);
  copies_.push_back(table);
  a.cos_sin = static_cast<const float*>(keep(rows.cos_sin));
  a.page_table = static_cast<const int32_t*>(table.const_data_ptr());
  a.cu_rows = static_cast<const int32_t*>(keep(rows.cu_rows));
  a.start = static_cast<const int32_t*>(keep(rows.start));
  a.page_table_stride = table.stride(0);
  a.num_sequences = static_cast<int32_t>(sequences);
  a.max_pages = static_cast<int32_t>(table.size(1));
  a.interleaved = rows.interleaved;
  a.scale = static_cast<float>(rows.scale);
  check_layout(op_, a, rows.cos_sin.size(0), pages_);
}

// ---- Workspace ---------------------------------------------------------------------------------

namespace {

constexpr size_t kMostKeptBytes = size_t{64} << 20;

struct Memory {
  void* data = nullptr;
  size_t size = 0;

  ~Memory() { std::free(data); }
  void resize(size_t bytes) {
    std::free(data);
    data = nullptr;
    size = 0;
    if (bytes == 0) return;
    bytes = (bytes + 4095) / 4096 * 4096;
    data = std::aligned_alloc(64, bytes);
    if (data == nullptr) throw std::bad_alloc();
    size = bytes;
  }
};
thread_local Memory memory;

}  // namespace

Workspace::Workspace(size_t bytes) {
  if (memory.size < bytes) memory.resize(bytes);
}

Workspace::~Workspace() {
  if (memory.size > kMostKeptBytes) memory.resize(0);
}

void* Workspace::data() const { return memory.data; }

}  // namespace rdk::binding
