// 3x3 pools of one image, padding 1, and their transposes; channels in vectors, `width` numbers a pixel.
#pragma once

#include <cstddef>

#include "vector.h"

namespace fastdarts::ISA {

struct Range {
  int64_t begin, end;
};

// The part of output i's window inside 0 .. size.
ALWAYS_INLINE Range window(int64_t i, int64_t stride, int64_t size) {
  const int64_t begin = i * stride - 1, end = begin + 3;
  return {begin < 0 ? 0 : begin, end > size ? size : end};
}

// One row of outputs, plus `start` (width numbers: minus the pivot). `line` is scratch for one row of inputs.
template <typename T, bool MAX>
void pool_row(const T* x, int64_t height, int64_t columns, int64_t width, int64_t stride, int64_t r, int64_t outputs,
              const T* start, T* line, T* out) {
  using V = Vec<T>;
  constexpr int L = LANES<T>;
  const auto join = [](V a, V b) { return MAX ? larger(b, a) : a + b; };
  const Range rows = window(r, stride, height);
  const int64_t row = columns * width, count = rows.end - rows.begin;
  const T* first = x + rows.begin * row;
  const T* last = x + (rows.end - 1) * row;
  if (count == 1) {
    __builtin_memcpy(line, first, static_cast<std::size_t>(row) * sizeof(T));
  } else if (count == 2) {
    for (int64_t i = 0; i < row; i += L) store(line + i, join(load(first + i), load(last + i)));
  } else {
    for (int64_t i = 0; i < row; i += L)
      store(line + i, join(join(load(first + i), load(first + row + i)), load(last + i)));
  }
  for (int64_t c = 0; c < outputs; ++c) {
    const Range cols = window(c, stride, columns);
    const int64_t wide = cols.end - cols.begin;
    const T share = T(1) / static_cast<T>(count * wide);
    const T* from = line + cols.begin * width;
    T* to = out + c * width;
    for (int64_t i = 0; i < width; i += L) {
      V v = load(from + i);
      if (wide > 1) v = join(v, load(from + width + i));
      if (wide > 2) v = join(v, load(from + 2 * width + i));
      store(to + i, (MAX ? v : v * share) + load(start + i));
    }
  }
}

// dx += the transpose of the average pool of dp.
template <typename T>
void avg_pool_transposed(const T* dp, int64_t out_rows, int64_t out_cols, int64_t height, int64_t columns,
                         int64_t width, int64_t stride, T* dx) {
  constexpr int L = LANES<T>;
  for (int64_t r = 0; r < out_rows; ++r) {
    const Range rows = window(r, stride, height);
    for (int64_t c = 0; c < out_cols; ++c) {
      const Range cols = window(c, stride, columns);
      const T share = T(1) / static_cast<T>((rows.end - rows.begin) * (cols.end - cols.begin));
      for (int64_t i = 0; i < width; i += L) {
        const Vec<T> grad = load(dp + (r * out_cols + c) * width + i) * share;
        for (int64_t y = rows.begin; y < rows.end; ++y) {
          for (int64_t q = cols.begin; q < cols.end; ++q) {
            T* to = dx + (y * columns + q) * width + i;
            store(to, load(to) + grad);
          }
        }
      }
    }
  }
}

// dx += the transpose of the maximum pool of dp: each window's gradient goes to the first pixel, row by row, that holds
// its maximum. Windows of `size` pixels a side from stride * output - pad.
template <typename T>
void max_pool_transposed(const T* x, const T* dp, int64_t out_rows, int64_t out_cols, int64_t height, int64_t columns,
                         int64_t width, int64_t stride, int64_t size, int64_t pad, T* dx) {
  using V = Vec<T>;
  constexpr int L = LANES<T>;
  for (int64_t r = 0; r < out_rows; ++r) {
    const int64_t y0 = r * stride - pad < 0 ? 0 : r * stride - pad;
    const int64_t y1 = smaller(r * stride - pad + size, height);
    for (int64_t c = 0; c < out_cols; ++c) {
      const int64_t q0 = c * stride - pad < 0 ? 0 : c * stride - pad;
      const int64_t q1 = smaller(c * stride - pad + size, columns);
      for (int64_t i = 0; i < width; i += L) {
        V most = load(x + (y0 * columns + q0) * width + i);
        for (int64_t y = y0; y < y1; ++y) {
          for (int64_t q = q0; q < q1; ++q) most = larger(load(x + (y * columns + q) * width + i), most);
        }
        V grad = load(dp + (r * out_cols + c) * width + i);
        for (int64_t y = y0; y < y1; ++y) {
          for (int64_t q = q0; q < q1; ++q) {
            const V value = load(x + (y * columns + q) * width + i);
            T* to = dx + (y * columns + q) * width + i;
            store(to, load(to) + (value == most ? grad : V{}));
            grad = value == most ? V{} : grad;  // the first one has taken it
          }
        }
      }
    }
  }
}

}  // namespace fastdarts::ISA
