// Launches the kernel of mixed_cell_state.h.
#include "launch.h"
#include "mixed_cell_launches.h"
#include "mixed_cell_state.h"

namespace fastdarts::cuda {

void launch_state_gradient(const CellArgs& args, Dtype dtype, int64_t programs, cudaStream_t stream) {
  state_gradient(args, dtype, programs, OnDevice{stream});
}

}  // namespace fastdarts::cuda
