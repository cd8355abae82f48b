// The launches of mixed_cell as functions of fastdarts._C, for the executor of the plan (kernels/mixed_cell.py).
#include "bind.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "mixed_cell_launches.h"

namespace py = pybind11;

namespace fastdarts::cuda {
namespace {

const std::map<std::string, Launch*> LAUNCHES = {{"pool_gradient", &launch_pool_gradient},
                                                 {"pool_sums", &launch_pool_sums},
                                                 {"separable", &launch_separable},
                                                 {"state_gradient", &launch_state_gradient},
                                                 {"tap_gradient", &launch_tap_gradient}};
const std::map<std::string, Dtype> DTYPES = {
    {"float32", Dtype::float32}, {"float16", Dtype::float16}, {"bfloat16", Dtype::bfloat16}};

// A tensor's memory; null where there is none of this name.
void* pointer(const py::dict& given, const char* name) {
  if (!given.contains(name)) return nullptr;
  return reinterpret_cast<void*>(given[name].attr("data_ptr")().cast<std::uintptr_t>());
}

int64_t integer(const py::dict& given, const char* name) {
  return given.contains(name) ? given[name].cast<int64_t>() : 0;
}

template <class T>
const T& named(const std::map<std::string, T>& table, const std::string& name, const char* what) {
  const auto found = table.find(name);
  if (found == table.end())
    throw py::value_error(std::string("the CUDA kernels of mixed_cell have no ") + what + " " + name);
  return found->second;
}

void launch(const std::string& kernel, const std::string& dtype, int64_t programs, int device, const py::dict& given) {
  Launch* start = named(LAUNCHES, kernel, "launch");
  const Dtype kind = named(DTYPES, dtype, "kernels for");
  CellArgs args;
#define FASTDARTS_FIELD(name) args.name = pointer(given, #name);
  FASTDARTS_CELL_POINTERS(FASTDARTS_FIELD)
#undef FASTDARTS_FIELD
#define FASTDARTS_FIELD(name) args.name = integer(given, #name);
  FASTDARTS_CELL_INTEGERS(FASTDARTS_FIELD)
#undef FASTDARTS_FIELD
  if (args.CQ > CUDA_WIDEST && kernel == "separable") {
    throw py::value_error("the CUDA kernel separable takes at most " + std::to_string(CUDA_WIDEST) + " channels, got " +
                          std::to_string(args.CQ));
  }
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  start(args, kind, programs, c10::cuda::getCurrentCUDAStream(static_cast<c10::DeviceIndex>(device)).stream());
}

std::vector<std::string> launches() {
  std::vector<std::string> names;
  for (const auto& [name, _] : LAUNCHES) names.push_back(name);
  return names;
}

}  // namespace

void bind(py::module_& m) {
  m.def("cuda_launches", &launches, "Which launches of mixed_cell have a CUDA kernel.");
  m.def(
      "cuda_launch", &launch, py::arg("kernel"), py::arg("dtype"), py::arg("programs"), py::arg("device"),
      py::arg("given"),
      "Start the CUDA kernel of a launch of mixed_cell on the device's current stream: given are the arguments of the "
      "Triton kernel of this name, by name, tensors and integers; those that it does not have are ignored.");
}

}  // namespace fastdarts::cuda
