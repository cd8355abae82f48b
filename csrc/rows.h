// Written by `python -m fastdarts.kernels.rows`, which says what each number means. Do not edit.
#pragma once

#include <cstdint>

namespace fastdarts {

constexpr int64_t PURPOSE_MASK = 4;
constexpr int64_t MOST_SIDE = 16384;
constexpr int CROP_BITS = 14;

enum Candidate : int64_t {
  NONE,
  SKIP,
  MAX_POOL_3,
  AVG_POOL_3,
  SEP_CONV_3,
  SEP_CONV_5,
  DIL_CONV_3,
  DIL_CONV_5,
  CONV_1,
  CONV_3,
  PLAIN_AVG_POOL_3,
  PLAIN_MAX_POOL_3,
  SEP_CONV_7,
};

namespace cuda {

constexpr int64_t ALIGN = 16;
constexpr int64_t CUDA_WIDEST = 64;

// Fields of the table's rows; last the length of a row.
enum UnitField {
  UNIT_SOURCE,
  UNIT_STATE,
  UNIT_EDGE,
  UNIT_STRIDE,
  UNIT_KERNEL,
  UNIT_DILATION,
  UNIT_TAPS,
  UNIT_HALVES,
  UNIT_DEPTHWISE,
  UNIT_POINTWISE,
  UNIT_Y,
  UNIT_NORM,
  UNIT_BEFORE_Y,
  UNIT_BEFORE_NORM,
  UNIT_BEFORE_GRAD,
  UNIT_GRAD,
  UNIT_MIDDLE,
  UNIT_SLOT,
  UNIT_DZ,
  UNIT,
};
enum EdgeField {
  EDGE_SOURCE,
  EDGE_STATE,
  EDGE_STRIDE,
  EDGE_TERMS,
  EDGE_TERMS_END,
  EDGE_MAX,
  EDGE_MAX_NORM,
  EDGE_AVG,
  EDGE_AVG_NORM,
  EDGE_PLAIN,
  EDGE_SKIP,
  EDGE_UNITS,
  EDGE_UNITS_END,
  EDGE_GRAD,
  EDGE_POOL,
  EDGE_SUMS,
  EDGE_SUMS_END,
  EDGE,
};
enum TermField {
  TERM_Y,
  TERM_NORM,
  TERM_COLUMN,
  TERM,
};
enum NodeField {
  NODE_NODE,
  NODE_STATE,
  NODE_EDGES,
  NODE_EDGES_END,
  NODE,
};
enum StateField {
  STATE_SOURCE,
  STATE_STATE,
  STATE_NODE,
  STATE_GRAD,
  STATE_LEAVING,
  STATE_LEAVING_END,
  STATE,
};
enum PoolField {
  POOL_SOURCE,
  POOL_STATE,
  POOL_EDGE,
  POOL_STRIDE,
  POOL_MAX_SLOT,
  POOL_AVG_SLOT,
  POOL_LEAVING,
  POOL_LEAVING_END,
  POOL_DMAX,
  POOL_PLACE,
  POOL_DAVG,
  POOL,
};
enum NormField {
  NORM_NORM,
  NORM_SLOT,
  NORM,
};
enum SumField {
  SUM_EDGE,
  SUM_KIND,
  SUM_COLUMN,
  SUM_Y,
  SUM_NORM,
  SUM,
};

}  // namespace cuda
}  // namespace fastdarts
