// Launches the kernels of mixed_cell_separable.h.
#include "launch.h"
#include "mixed_cell_launches.h"
#include "mixed_cell_separable.h"

namespace fastdarts::cuda {

void launch_separable(const CellArgs& args, Dtype dtype, int64_t programs, cudaStream_t stream) {
  separable(args, dtype, programs, OnDevice{stream});
}

}  // namespace fastdarts::cuda
