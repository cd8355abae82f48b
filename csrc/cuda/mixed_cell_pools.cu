// Launches the kernels of mixed_cell_pools.h.
#include "launch.h"
#include "mixed_cell_launches.h"
#include "mixed_cell_pools.h"

namespace fastdarts::cuda {

void launch_pool_sums(const CellArgs& args, Dtype dtype, int64_t programs, cudaStream_t stream) {
  pool_sums(args, dtype, programs, OnDevice{stream});
}

void launch_pool_gradient(const CellArgs& args, Dtype dtype, int64_t programs, cudaStream_t stream) {
  pool_gradient(args, dtype, programs, OnDevice{stream});
}

}  // namespace fastdarts::cuda
