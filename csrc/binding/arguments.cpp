#include "arguments.h"

#include <torch/csrc/stable/ops.h>

#include <stdexcept>
#include <string_view>

namespace rdk::binding {
namespace {

const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    default:
      return torch::headeronly::toString(type);
  }
}

std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return (tensor.is_cuda() ? "cuda:" : "device ") + std::to_string(tensor.get_device_index());
}

std::string join(const int64_t* sizes, size_t count) {
  std::string text;
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) text += ", ";
    text += sizes[i] == kAny ? "*" : std::to_string(sizes[i]);
  }
  return "[" + text + "]";
}

bool has_shape(const Tensor& tensor, Shape shape) {
  if (tensor.dim() != static_cast<int64_t>(shape.size())) return false;
  int64_t dimension = 0;
  for (const int64_t size : shape) {
    const int64_t have = tensor.size(dimension++);
    if (size != kAny && size != have) return false;
  }
  return true;
}

bool same_device(const Tensor& a, const Tensor& b) {
  if (a.is_cpu() || b.is_cpu()) return a.is_cpu() && b.is_cpu();
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

}  // namespace

void fail(const char* op, const char* argument, const std::string& expected,
          const std::string& got) {
  throw std::invalid_argument(std::string(op) + ": " + argument + ": expected " + expected +
                              ", got " + got);
}

std::string describe(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return name_of(tensor.scalar_type()) + join(sizes.data(), sizes.size()) + " on " +
         device_of(tensor);
}

RdkDtype dtype_of(const char* op, const char* argument, const Tensor& tensor) {
  const std::string_view type = name_of(tensor.scalar_type());
#define RDK_FIND(code, value, element, name) \
  if (type == name) return code;
  RDK_DTYPES(RDK_FIND)
#undef RDK_FIND
#define RDK_LIST(code, value, element, name) "|" name
  constexpr std::string_view kNames = RDK_DTYPES(RDK_LIST);
#undef RDK_LIST
  fail(op, argument, std::string(kNames.substr(1)) + " (native kernels)", describe(tensor));
}

void check_row_bounds(const char* op, const int32_t* cu_rows, int64_t num_sequences,
                      int64_t num_rows) {
  if (num_sequences > 0 && cu_rows[0] != 0) {
    fail(op, "cu_rows", "0 first", std::to_string(cu_rows[0]));
  }
  for (int64_t b = 0; b < num_sequences; ++b) {
    const int32_t first = cu_rows[b], end = cu_rows[b + 1];
    if (first <= end && end <= num_rows) continue;
    fail(op, "cu_rows", "prefix sums up to " + std::to_string(num_rows),
         std::to_string(first) + " and " + std::to_string(end) + " for sequence " +
             std::to_string(b));
  }
}

void expect_shape(const char* op, const char* argument, const Tensor& tensor, Shape shape) {
  if (!has_shape(tensor, shape)) {
    fail(op, argument, "shape " + join(shape.begin(), shape.size()), describe(tensor));
  }
}

void expect_tensor(const char* op, const char* argument, const Tensor& tensor, Shape shape,
                   ScalarType dtype, const Tensor& like) {
  if (has_shape(tensor, shape) && tensor.scalar_type() == dtype && same_device(tensor, like))
    return;
  fail(op, argument, name_of(dtype) + join(shape.begin(), shape.size()) + " on " + device_of(like),
       describe(tensor));
}

void expect_output(const char* op, const char* argument, const Tensor& tensor, Shape shape,
                   const Tensor& like) {
  expect_written(op, argument, tensor, shape, like.scalar_type(), like);
}

void expect_written(const char* op, const char* argument, const Tensor& tensor, Shape shape,
                    ScalarType dtype, const Tensor& like) {
  expect_tensor(op, argument, tensor, shape, dtype, like);
  const int64_t last = tensor.dim() - 1;
  if (tensor.numel() == 0 || last < 0) return;
  if (tensor.size(last) > 1 && tensor.stride(last) != 1) {
    fail(op, argument, "a contiguous last dimension",
         "stride " + std::to_string(tensor.stride(last)));
  }
  if (last > 0 && tensor.size(last - 1) > 1 && tensor.stride(last - 1) < tensor.size(last)) {
    fail(op, argument, "rows that do not overlap",
         "stride " + std::to_string(tensor.stride(last - 1)) + " between rows of " +
             std::to_string(tensor.size(last)));
  }
}

Tensor with_contiguous_rows(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (last < 0 || tensor.size(last) <= 1 || tensor.stride(last) == 1) return tensor;
  return torch::stable::contiguous(tensor);
}

std::optional<Tensor> checked_scale(const char* op, const char* argument,
                                    const std::optional<Tensor>& scale, const Tensor& weight) {
  const bool quantized = weight.scalar_type() == ScalarType::Char;
  if (quantized != scale.has_value()) {
    fail(op, argument,
         quantized ? "a scale for an int8 weight" : "None for a weight that is not int8",
         scale ? describe(*scale) : "None");
  }
  if (!quantized) return std::nullopt;
  expect_tensor(op, argument, *scale, {weight.size(0)}, ScalarType::Float, weight);
  return with_contiguous_rows(*scale);
}

}  // namespace rdk::binding
