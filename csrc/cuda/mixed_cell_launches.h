// Launches of mixed_cell that have a CUDA kernel, each named like the Triton kernel that it replaces.
#pragma once

#include <cuda_runtime_api.h>

#include "mixed_cell.h"

namespace fastdarts::cuda {

using Launch = void(const CellArgs& args, Dtype dtype, int64_t programs, cudaStream_t stream);

Launch launch_pool_gradient, launch_pool_sums, launch_separable, launch_state_gradient, launch_tap_gradient;

}  // namespace fastdarts::cuda
