// What fastdarts._C has of the CUDA kernels that are no op of their own.
#pragma once

#include <pybind11/pybind11.h>

namespace fastdarts::cuda {

void bind(pybind11::module_& m);

}  // namespace fastdarts::cuda
