// The Python module `rdkernels._C`: two strings. Importing it loads this library, and loading the
// library registers the ops (static initialisers of the other files in this folder).
//
// The few lines of CPython's stable ABI that this takes are declared here instead of including
// Python.h, so that building needs no Python headers (Debian keeps them in a package of their own).
// Names and layout are those of the limited API of Python 3.10, fixed by PEP 384.
#include <cstddef>

#include "rdkernels/api.h"

extern "C" {

struct PyObject;

struct PyModuleDef {
  struct {
    struct {
      ptrdiff_t reference_count = 0;
      void* type = nullptr;
    } object;
    PyObject* (*init)() = nullptr;
    ptrdiff_t index = 0;
    PyObject* copy = nullptr;
  } base;
  const char* name = nullptr;
  const char* doc = nullptr;
  ptrdiff_t size = 0;
  void* methods = nullptr;
  void* slots = nullptr;
  void* traverse = nullptr;
  void* clear = nullptr;
  void* free = nullptr;
};

PyObject* PyModule_Create2(PyModuleDef* definition, int api_version);
int PyModule_AddStringConstant(PyObject* module, const char* name, const char* value);

__attribute__((visibility("default"))) PyObject* PyInit__C() {
  constexpr int kLimitedApiVersion = 3;  // PYTHON_ABI_VERSION
  static PyModuleDef definition = {.base = {.object = {.reference_count = 1}},
                                   .name = "_C",
                                   .doc = "Native kernels of rdkernels.",
                                   .size = -1};
  PyObject* module = PyModule_Create2(&definition, kLimitedApiVersion);
  if (module == nullptr) return nullptr;
  // RDK_BUILD_INFO is a JSON object; tools/native_build.py passes it.
  if (PyModule_AddStringConstant(module, "build_info", RDK_BUILD_INFO) != 0 ||
      PyModule_AddStringConstant(module, "cpu_capability", rdk_cpu_capability()) != 0) {
    return nullptr;
  }
  return module;
}

}  // extern "C"
