// Bindings of the CUDA kernels in fastdarts._C, except registered ops.
#pragma once

#include <pybind11/pybind11.h>

namespace fastdarts::cuda {

void bind(pybind11::module_& m);

}  // namespace fastdarts::cuda
