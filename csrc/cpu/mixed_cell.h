// Kernel interface of csrc/cpu/mixed_cell.cpp: a cell as plain numbers.
//
// Notation: N images of H x W pixels (Ho x Wo after the stride), C channels of which Cq = C/k pass through the
// candidates, E edges, K columns of `ops`, L lanes of a vector, G images that share a vector.
//
// Block layout of all tensors in candidates: [blocks][rows][pixels][vectors * L], where lane g * (L / G) + c
// of a vector is channel c of image G * block + g. For Cq a multiple of L this is NHWC; below L, images share the
// vector.
#pragma once

#include <cstdint>

#include "../rows.h"

namespace fastdarts {

// One convolution and its BN: a dilated one, either half of a separable one, or a dense one.
struct Unit {
  int edge, column;                  // of `ops`
  int kernel, dilation, stride;      // of the depthwise convolution before the pointwise one; kernel 0: dense
  int taps, tap_row[9], tap_col[9];  // dense: which pixels, from stride * output
  bool halves;                       // dense: each of two taps gives half of the channels (FactorizedReduce)
  int before, after;                 // the other half of a separable convolution, -1 where there is none
  int bn;
  int64_t depthwise, pointwise;  // offsets of its matrices in `weights`
  int64_t y;                     // offset of its output (before BN, minus the pivot) in `saved`
  int64_t pack;                  // offset of its matrices in kernel layout
};

struct MixedEdge {
  int source, node, stride;
  int begin, end;                // its units
  int skip, max_pool, avg_pool;  // columns of `ops`, -1 where it has no such candidate
  int plain_max, plain_avg;      // likewise of the pools without a BN
  int max_bn, avg_bn;
};

struct CellPlan {
  int inputs, nodes, num_edges, num_units, num_bns, columns;
  const MixedEdge* edges;
  const Unit* units;
  int64_t N, C, H, W, Ho, Wo, k, Cq;
  int64_t lanes, images, vectors, blocks;  // L, G, vectors of a pixel, ceil(N / G)
  bool shared;                             // all edges process the same channels: those of row 0 of `channels`
  bool direct;                             // block layout is the states' own NHWC
  const int* channels;                     // (E, Cq)
  const int* shuffled;                     // (C,): the node's channel of input channel c, or nullptr: c itself
  const int* unshuffled;                   // (C,): the input channel of the node's channel c
  const int64_t* state;                    // (nodes,): offset of a node's state in `saved`, -1 if it feeds no edge
  int64_t pivots;                          // offset of the pivots (bns, Cq) in `saved`
  int64_t saved, packed;                   // numbers in `saved` and in all matrices in kernel layout
  // How many edges go through a stage together: few keep the caches, many the threads busy, all are one sum over ranks.
  int edges_at_once;
  bool edges_per_image;  // `edges` is (E, N)
  const double* scale;   // (bns, Cq): of the BNs' affine parameters, or nullptr: 1
  const double* shift;   // likewise, 0
  bool batch_statistics;
  double eps;
  int64_t sync;  // handle of ranks.h: the ranks that share the statistics; 0 for running statistics
};

template <typename T>
struct CellForward {
  const T* const* inputs;  // NHWC
  const double* ops;       // (E, K)
  const double* edges;     // (E,) or (E, N), or nullptr: 1
  const T* weights;
  double* mean;      // (bns, Cq): output, or input for running statistics
  double* variance;  // likewise, biased
  T* saved;
  T* out;  // NHWC, nodes * C channels
};

template <typename T>
struct CellBackward {
  const T* const* inputs;
  const double* ops;
  const double* edges;
  const T* weights;
  const double* mean;
  const double* variance;
  const T* saved;
  const T* grad;          // NHWC, nodes * C channels
  T* const* grad_inputs;  // NHWC, or nullptr: not needed
  bool need_ops;          // the gradients of ops and edges
  double* grad_ops;       // (E, K), zeroed
  double* grad_edges;     // (E,), zeroed
  double* grad_scale;     // (bns, Cq), or nullptr: not needed
  double* grad_shift;     // likewise
  T* grad_weights;        // or nullptr: not needed
};

struct CellKernels {
  int bytes;  // of a vector
  void (*forward_float)(const CellPlan&, const CellForward<float>&);
  void (*forward_double)(const CellPlan&, const CellForward<double>&);
  void (*backward_float)(const CellPlan&, const CellBackward<float>&);
  void (*backward_double)(const CellPlan&, const CellBackward<double>&);
};

namespace portable {
extern const CellKernels cell_kernels;
}
namespace avx2 {
extern const CellKernels cell_kernels;
}
namespace avx512 {
extern const CellKernels cell_kernels;
}
namespace avx512vl {
extern const CellKernels cell_kernels;
}

}  // namespace fastdarts
