// Launches the kernels of mixed_cell_taps.h.
#include "launch.h"
#include "mixed_cell_launches.h"
#include "mixed_cell_taps.h"

namespace fastdarts::cuda {

void launch_tap_gradient(const CellArgs& args, Dtype dtype, int64_t programs, cudaStream_t stream) {
  tap_gradient(args, dtype, programs, OnDevice{stream});
}

}  // namespace fastdarts::cuda
