// The peak rate of fused multiply-adds, the reference of bench.floor.
#pragma once

namespace fastdarts {

// Runs 2 * lanes * 12 * `rounds` float operations on the calling thread; returns their number.
struct PeakKernels {
  double (*run)(long rounds);
};

namespace portable {
extern const PeakKernels peak_kernels;
}
namespace avx2 {
extern const PeakKernels peak_kernels;
}
namespace avx512 {
extern const PeakKernels peak_kernels;
}
namespace avx512vl {
extern const PeakKernels peak_kernels;
}

// Floating-point operations a second of float multiply-adds in registers, on all of torch's threads at once.
double fma_peak();

}  // namespace fastdarts
