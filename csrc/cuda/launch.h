// Launches a kernel of block.h on a stream. For .cu files.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "block.h"

namespace fastdarts::cuda {

// Called by the launch functions of the kernels' headers.
struct OnDevice {
  cudaStream_t stream;

  template <class Kernel>
  void operator()(const typename Kernel::Args& args, int64_t blocks) const {
    if (!blocks) return;
    run_block<Kernel><<<static_cast<unsigned>(blocks), Kernel::THREADS, 0, stream>>>(args);
    if (const cudaError_t error = cudaGetLastError()) {
      throw std::runtime_error(std::string("a CUDA kernel did not start: ") + cudaGetErrorString(error));
    }
  }
};

}  // namespace fastdarts::cuda
