// Kernel interface of csrc/cpu/conv_bn_chain.cpp: one layer of the chain per call.
//
// Notation: N images of H x W input and Ho x Wo output pixels, C input and D output channels; all tensors NHWC.
#pragma once

#include <cstdint>

namespace fastdarts {

// A 3x3 convolution with a border of one zero pixel, then BN.
struct LinkPlan {
  int64_t N, H, W, Ho, Wo, C, D, stride;
  bool batch_statistics;
  double eps;
  int64_t sync;  // handle of ranks.h: the ranks that share the statistics; 0 for running statistics
};

// A layer's input: relu(scale * data + shift), or data if scale is nullptr.
template <typename T>
struct LinkInput {
  const T* data;
  const T* scale;  // (C,)
  const T* shift;
};

template <typename T>
struct LinkForward {
  LinkInput<T> in;
  const T* weight;       // (D, C, 3, 3)
  const T* norm_weight;  // (D,)
  const T* norm_bias;
  double* mean;  // (D,): output, or input for running statistics
  double* variance;
  double* centre;  // (D,): the mean of y as stored
  T* y;            // the convolution minus one number a channel
  T* scale;        // (D,): BN is scale * y + shift
  T* shift;
  T* out;  // BN's output, or nullptr
};

template <typename T>
struct LinkBackward {
  LinkInput<T> in;
  const T* weight;
  const T* norm_weight;
  const double* variance;
  const double* centre;
  const T* y;
  const T* grad;   // of BN's output
  T* grad_in;      // of scale * data + shift (of data where that is nullptr), or nullptr: not needed
  const T* more;   // added to grad_in, or nullptr
  T* grad_weight;  // these three, or nullptr: not needed
  T* grad_norm_weight;
  T* grad_norm_bias;
};

struct LinkKernels {
  void (*forward_float)(const LinkPlan&, const LinkForward<float>&);
  void (*forward_double)(const LinkPlan&, const LinkForward<double>&);
  void (*backward_float)(const LinkPlan&, const LinkBackward<float>&);
  void (*backward_double)(const LinkPlan&, const LinkBackward<double>&);
  // scale and shift of a layer of D channels, as its forward wrote them
  void (*affine_float)(int64_t D, double eps, const float* norm_weight, const float* norm_bias, const double* variance,
                       const double* centre, float* scale, float* shift);
  void (*affine_double)(int64_t D, double eps, const double* norm_weight, const double* norm_bias,
                        const double* variance, const double* centre, double* scale, double* shift);
};

namespace portable {
extern const LinkKernels link_kernels;
}
namespace avx2 {
extern const LinkKernels link_kernels;
}
namespace avx512 {
extern const LinkKernels link_kernels;
}
namespace avx512vl {
extern const LinkKernels link_kernels;
}

}  // namespace fastdarts
