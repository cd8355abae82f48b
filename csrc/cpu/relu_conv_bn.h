// Kernel interface of csrc/cpu/relu_conv_bn.cpp.
//
// Notation: N images of H x W input and Ho x Wo output pixels, C input and D output channels; all tensors NHWC.
//
// One layer at a time, or two that are ready together (of one N, Ho, Wo): then one sum over the ranks serves both.
#pragma once

#include <cstdint>

namespace fastdarts {

struct LayerPlan {
  int64_t N, H, W, Ho, Wo, C, D;
  int taps;  // 1: stride 1. 2: FactorizedReduce, tap t gives half t of the outputs from pixel (2r + t, 2c + t)
  bool batch_statistics;
  double eps;
};

template <typename T>
struct LayerForward {
  const T* x;
  const T* const* weights;  // of each tap: (D / taps, C)
  double* mean;             // (D,): output, or input for running statistics
  double* variance;
  const double* scale;  // (D,): of the BN's affine parameters, or nullptr: none
  const double* shift;
  T* out;
  T* normalised;  // xhat, for the backward; without affine parameters it is `out`
};

template <typename T>
struct LayerBackward {
  const T* grad;
  const T* x;
  const T* const* weights;
  const T* normalised;
  const double* variance;
  const double* scale;     // or nullptr
  T* grad_x;               // or nullptr: not needed
  T* const* grad_weights;  // of each tap, or nullptr: not needed
  double* grad_scale;      // (D,), or nullptr: not needed
  double* grad_shift;
};

// plans and calls: of `layers` layers; sync: handle of ranks.h, 0 for running statistics.
struct LayerKernels {
  void (*forward_float)(const LayerPlan*, const LayerForward<float>*, int layers, int64_t sync);
  void (*forward_double)(const LayerPlan*, const LayerForward<double>*, int layers, int64_t sync);
  void (*backward_float)(const LayerPlan*, const LayerBackward<float>*, int layers, int64_t sync);
  void (*backward_double)(const LayerPlan*, const LayerBackward<double>*, int layers, int64_t sync);
};

namespace portable {
extern const LayerKernels layer_kernels;
}
namespace avx2 {
extern const LayerKernels layer_kernels;
}
namespace avx512 {
extern const LayerKernels layer_kernels;
}
namespace avx512vl {
extern const LayerKernels layer_kernels;
}

}  // namespace fastdarts
