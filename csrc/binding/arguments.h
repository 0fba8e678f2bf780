// Argument checks of the bindings. Every failure names the op, the argument, what was expected and
// what was given, in the words of rdkernels.errors.ArgumentError:
//
//   rms_norm: weight: expected float32[64] on cpu, got float32[32] on cpu
//
// It is thrown as std::invalid_argument, a ValueError in Python.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "rdkernels/api.h"

namespace rdk::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline constexpr int64_t kAny = -1;  // a size that may be anything

using Shape = std::initializer_list<int64_t>;

[[noreturn]] void fail(const char* op, const char* argument, const std::string& expected,
                       const std::string& got);

// "float32[4, 8] on cpu"
std::string describe(const Tensor& tensor);

// The launchers' name for the element type; fails unless it is float32, bfloat16 or float16.
RdkDtype dtype_of(const char* op, const char* argument, const Tensor& tensor);

// Fails unless `tensor` has this shape (kAny matches any size).
void expect_shape(const char* op, const char* argument, const Tensor& tensor, Shape shape);

// Fails unless `tensor` has this shape and element type and is on the device of `like`.
void expect_tensor(const char* op, const char* argument, const Tensor& tensor, Shape shape,
                   ScalarType dtype, const Tensor& like);

// The same with the element type of `like`.
inline void expect_like(const char* op, const char* argument, const Tensor& tensor, Shape shape,
                        const Tensor& like) {
  expect_tensor(op, argument, tensor, shape, like.scalar_type(), like);
}

// An output: as expect_like, and its last dimension is contiguous and its rows do not overlap.
void expect_output(const char* op, const char* argument, const Tensor& tensor, Shape shape,
                   const Tensor& like);

// A tensor that is written, of a given element type: as expect_output.
void expect_written(const char* op, const char* argument, const Tensor& tensor, Shape shape,
                    ScalarType dtype, const Tensor& like);

// On the CPU the rows' layout can be read without waiting for anybody, and a wrong one is an error
// message and not an access to someone else's memory: fails unless cu_rows [num_sequences + 1] are
// prefix sums up to num_rows.
void check_row_bounds(const char* op, const int32_t* cu_rows, int64_t num_sequences,
                      int64_t num_rows);

// An input whose last dimension is contiguous: `tensor`, or a copy if it is not so.
Tensor with_contiguous_rows(const Tensor& tensor);

// The element type that a linear layer's weight must have for rows like `x`: int8 if it has that,
// else the rows' own.
inline ScalarType weight_type(const Tensor& weight, const Tensor& x) {
  return weight.scalar_type() == ScalarType::Char ? ScalarType::Char : x.scalar_type();
}

// The scale of an int8 weight [M, K], float32 [M], with contiguous elements. Fails if it lacks one,
// or if another weight has one.
std::optional<Tensor> checked_scale(const char* op, const char* argument,
                                    const std::optional<Tensor>& scale, const Tensor& weight);

}  // namespace rdk::binding
