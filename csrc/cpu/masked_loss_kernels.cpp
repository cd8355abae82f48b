#include "masked_loss.h"
#include "vector.h"

namespace fastdarts::ISA {
namespace {

using masked_loss::Columns;
using masked_loss::Kernels;
using masked_loss::Line;
using masked_loss::Rows;

enum Norm { L1, L2 };

template <typename T>
constexpr int BLOCK = 3 * LANES<T>;

template <typename T>
void expand(const Columns<T>& columns, const T* low, T* __restrict row, int64_t n) {
  const auto [near, far, share] = columns;
  for (int64_t i = 0; i < n; ++i) row[i] = low[near[i]] + share[i] * (low[far[i]] - low[near[i]]);
}

template <typename T>
void fold(const Columns<T>& columns, const T* row, double* low, int64_t n) {
  const auto [near, far, share] = columns;
  for (int64_t i = 0; i < n;) {  // pixels between the same two of `low` are summed before they are added
    const int32_t i_near = near[i], i_far = far[i];
    double sum[3] = {}, far_sum[3] = {};
    for (; i < n && near[i] == i_near && far[i] == i_far; i += 3) {
      for (int c = 0; c < 3; ++c) {
        sum[c] += row[i + c];
        far_sum[c] += static_cast<double>(share[i]) * row[i + c];
      }
    }
    for (int c = 0; c < 3; ++c) {
      low[i_near + c] += sum[c] - far_sum[c];
      low[i_far + c] += far_sum[c];
    }
  }
}

template <typename T, Norm NORM, bool GRADIENT>
void compare(const Line<T>& line, double* loss, double* colours) {
  using V = Vec<T>;
  using Bits = typename VectorOf<T>::Mask;
  constexpr int L = LANES<T>;
  const auto [levels, n_levels, blocks, n_blocks, masked, target, bias] = line;
  const Bits sign = reinterpret_cast<Bits>(-V{}), one = reinterpret_cast<Bits>(all(T{1}));
  V losses{}, sums[3] = {};
  for (int64_t b = 0; b < n_blocks; ++b) {
    const int64_t i_block = blocks[b];
    V error[3];
    for (int v = 0; v < 3; ++v) error[v] = load(bias + v * L);
    for (int64_t l = 0; l < n_levels; ++l) {
      const auto [near, far, near_grad, far_grad, share] = levels[l];
      for (int v = 0; v < 3; ++v) {
        const V from = load(near + i_block + v * L);
        error[v] += from;
        error[v] += share * (load(far + i_block + v * L) - from);
      }
    }
    for (int v = 0; v < 3; ++v) {
      const int64_t i = i_block + v * L;
      error[v] = load(masked + i) != 0 ? error[v] - load(target + i) : V{};
      if constexpr (NORM == L1) {
        const Bits bits = reinterpret_cast<Bits>(error[v]);
        losses += reinterpret_cast<V>(bits & ~sign);
        error[v] = reinterpret_cast<V>(((bits & sign) | one) & (error[v] != 0));
      } else {
        losses += error[v] * error[v];
      }
      sums[v] += error[v];
    }
    if constexpr (GRADIENT) {
      for (int64_t l = 0; l < n_levels; ++l) {
        const auto [near, far, near_grad, far_grad, share] = levels[l];
        for (int v = 0; v < 3; ++v) {
          T *to_near = near_grad + i_block + v * L, *to_far = far_grad + i_block + v * L;
          store<T>(to_near, load(to_near) + (1 - share) * error[v]);
          store<T>(to_far, load(to_far) + share * error[v]);  // after near: they may be one row
        }
      }
    }
  }
  double row_loss = 0;
  for (int l = 0; l < L; ++l) row_loss += losses[l];
  *loss += row_loss;
  if constexpr (GRADIENT) {
    double row_sums[3] = {};
    for (int i = 0; i < 3 * L; ++i) row_sums[i % 3] += sums[i / L][i % L];
    for (int c = 0; c < 3; ++c) colours[c] += row_sums[c];
  }
}

template <typename T>
constexpr Kernels<T> KERNELS = {
    BLOCK<T>,
    expand<T>,
    fold<T>,
    {{compare<T, L1, false>, compare<T, L1, true>}, {compare<T, L2, false>, compare<T, L2, true>}},
};

}  // namespace

const masked_loss::Table masked_loss_table = {KERNELS<float>, KERNELS<double>};

}  // namespace fastdarts::ISA
