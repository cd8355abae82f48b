// Kernel interface of csrc/cpu/masked_loss.cpp.
//
// Notation: W pixels of an image's row. A row is 3 * W numbers, colour c of pixel x at 3 * x + c, and as many more as
// make whole blocks: three vectors each, so that every block begins with the same colour.
#pragma once

#include <cstdint>

namespace fastdarts::masked_loss {

// Horizontal interpolation: number i of a row is low[near[i]] + share[i] * (low[far[i]] - low[near[i]]).
template <typename T>
struct Columns {
  const int32_t *near, *far;
  const T* share;
};

// Vertical interpolation: a level's prediction for a row is near + share * (far - near), two rows that may be one.
// near_grad and far_grad accumulate their gradients.
template <typename T>
struct Rows {
  const T *near, *far;
  T *near_grad, *far_grad;
  T share;
};

// A row of an image and of its prediction.
template <typename T>
struct Line {
  const Rows<T>* levels;
  int64_t n_levels;
  const int64_t* blocks;  // offsets of the blocks with masked pixels
  int64_t n_blocks;
  const T* masked;  // 0 where a number is not masked
  const T* target;
  const T* bias;  // of one block
};

template <typename T>
struct Kernels {
  int64_t block;  // numbers of a block
  // row[i] for i in 0 .. n
  void (*expand)(const Columns<T>& columns, const T* low, T* row, int64_t n);
  // Its transpose, added to `low`; n is a multiple of 3.
  void (*fold)(const Columns<T>& columns, const T* row, double* low, int64_t n);
  // Adds the masked numbers' |error| [0] or error^2 [1] to *loss; of [.][1] also half its derivative (of l1 the whole)
  // to the levels' gradients and to each colour's sum.
  void (*compare[2][2])(const Line<T>& line, double* loss, double* colours);
};

struct Table {
  Kernels<float> f32;
  Kernels<double> f64;
};

}  // namespace fastdarts::masked_loss

namespace fastdarts {
namespace portable {
extern const masked_loss::Table masked_loss_table;
}
namespace avx2 {
extern const masked_loss::Table masked_loss_table;
}
namespace avx512 {
extern const masked_loss::Table masked_loss_table;
}
namespace avx512vl {
extern const masked_loss::Table masked_loss_table;
}
}  // namespace fastdarts
