// Parameter structs from Python dictionaries. Tensors are given by address; the test keeps them
// alive.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "rdkernels/api.h"
#include "simt_pybind.h"

namespace op_arguments {

namespace py = pybind11;

// The fields of one launch. Each must be asked for: see check_all_used.
class Fields {
 public:
  explicit Fields(const py::dict& values) : values_(values) {}

  template <class T>
  T* pointer(const char* name) {
    return reinterpret_cast<T*>(get<uintptr_t>(name));
  }
  int64_t integer(const char* name) { return get<int64_t>(name); }
  float number(const char* name) { return get<float>(name); }
  double real(const char* name) { return get<double>(name); }
  uint64_t bits(const char* name) { return get<uint64_t>(name); }

  // Throws if Python gave a field that nobody asked for, which would be a typing error in the test.
  void check_all_used() const {
    if (used_ != values_.size()) throw py::value_error("a field of the launch is not used");
  }

 private:
  template <class T>
  T get(const char* name) {
    if (!values_.contains(name)) throw py::key_error(name);
    ++used_;
    return values_[name].template cast<T>();
  }

  py::dict values_;
  size_t used_ = 0;
};

// Throws unless `code`, of a dispatching function of rdkernels/*.cuh, is success.
inline void check_code(int code) {
  if (code != kRdkSuccess) throw py::value_error("launcher returned " + std::to_string(code));
}

}  // namespace op_arguments
