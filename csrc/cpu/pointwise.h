// Products of pixels with small matrices: 1x1 convolutions, their transposes and their weight gradients.
//
// Notation: L lanes of a vector, G images that lie side by side in a vector (then it holds L / G channels of each: that
// is how fewer than L channels are laid out), P pixels and B vectors of channels computed together in registers.
#pragma once

#include "vector.h"

namespace fastdarts::ISA {

// Lane (g, c) of the result is lane (g, I) of v.
template <typename T, int G, int I>
ALWAYS_INLINE Vec<T> spread(Vec<T> v) {
  constexpr int L = LANES<T>, C = L / G;
  typename VectorOf<T>::Mask lanes{};
#pragma GCC unroll 16
  for (int l = 0; l < L; ++l) lanes[l] = l / C * C + I;
  return __builtin_shuffle(v, lanes);
}

// How a product's sums begin.
enum class Start { zero, vector, output };

// What one call of `pointwise` reads and writes.
template <typename T>
struct Product {
  const T* in;  // `pixels` pixels at a distance of in_pixel
  int64_t in_pixel;
  const int64_t* offsets;  // of `taps` taps: where each tap's pixels begin, from `in`
  int taps;
  int rows;         // input channels: rows of a tap's matrix
  const T* matrix;  // (taps, rows, vectors * L)
  int64_t vectors;
  Start start;
  const T* first;  // Start::vector: vectors * L numbers
  T* out;          // `pixels` pixels at a distance of out_pixel
  int64_t out_pixel;
  T* sums;  // nullptr, or (2, vectors * L): += sum of the outputs, += sum of their squares
};

template <typename T, int G, int P, int B, int I>
ALWAYS_INLINE void product_lanes(const Vec<T> (&value)[P], const T* matrix, int64_t width, Vec<T> (&sum)[P][B]) {
  if constexpr (I < LANES<T> / G) {
    Vec<T> weight = load(matrix + I * width);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sum[p][0] += spread<T, G, I>(value[p]) * weight;
    product_lanes<T, G, P, B, I + 1>(value, matrix, width, sum);
  }
}

template <typename T, int G, int P, int B>
ALWAYS_INLINE void product_block(const Product<T>& t, int64_t pixel, int64_t vector) {
  using V = Vec<T>;
  constexpr int L = LANES<T>;
  const int64_t width = t.vectors * L;
  T* out = t.out + pixel * t.out_pixel + vector * L;
  V sum[P][B];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 5
    for (int b = 0; b < B; ++b) {
      sum[p][b] = t.start == Start::zero     ? V{}
                  : t.start == Start::vector ? load(t.first + (vector + b) * L)
                                             : load(out + p * t.out_pixel + b * L);
    }
  }
  for (int tap = 0; tap < t.taps; ++tap) {
    const T* in = t.in + t.offsets[tap] + pixel * t.in_pixel;
    const T* matrix = t.matrix + tap * t.rows * width + vector * L;
    if constexpr (G == 1) {
#pragma GCC unroll 4
      for (int row = 0; row < t.rows; ++row) {
        V weight[B];
#pragma GCC unroll 5
        for (int b = 0; b < B; ++b) {
          weight[b] = pinned(load(matrix + row * width + b * L));
        }
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
          V value = all(in[p * t.in_pixel + row]);
          if constexpr (B > 1) pin(value);
#pragma GCC unroll 5
          for (int b = 0; b < B; ++b) sum[p][b] += value * weight[b];
        }
      }
    } else {
      V value[P];
      pin_address(in);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) value[p] = load(in + p * t.in_pixel);
      product_lanes<T, G, P, B, 0>(value, matrix, width, sum);
    }
  }
  if constexpr (G > 1) pin_address(out);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 5
    for (int b = 0; b < B; ++b) store(out + p * t.out_pixel + b * L, sum[p][b]);
  }
  if (t.sums != nullptr) {
#pragma GCC unroll 5
    for (int b = 0; b < B; ++b) {
      T* to = t.sums + (vector + b) * L;
      V total = load(to), squares = load(to + width);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        total += sum[p][b];
        squares += sum[p][b] * sum[p][b];
      }
      store(to, total);
      store(to + width, squares);
    }
  }
}

template <typename T, int G, int P, int B>
ALWAYS_INLINE void product_vectors(const Product<T>& t, int64_t pixels, int64_t vector) {
  int64_t p = 0;
  for (; p + P <= pixels && (P % 4 == 0 || pixels - p != 8); p += P) product_block<T, G, P, B>(t, p, vector);
  if constexpr (P > 4) {
    for (; p + 4 <= pixels; p += 4) product_block<T, G, 4, B>(t, p, vector);
  }
  for (; p < pixels; ++p) product_block<T, G, 1, B>(t, p, vector);
}

// out = start + sum over taps and rows of in * matrix, for `pixels` pixels.
template <typename T, int G>
void pointwise(const Product<T>& t, int64_t pixels) {
  int64_t v = 0;
  if constexpr (G == 1 && REGISTERS == 32) {
    for (; v + 4 == t.vectors || v + 5 < t.vectors; v += 4) product_vectors<T, G, 4, 4>(t, pixels, v);
    if (v + 5 == t.vectors) {
      product_vectors<T, G, 4, 5>(t, pixels, v);
      v += 5;
    }
    if (v + 3 == t.vectors) {
      product_vectors<T, G, 8, 3>(t, pixels, v);
      v += 3;
    }
  }
  if constexpr (G == 1) {
    for (; v + 2 <= t.vectors; v += 2) product_vectors<T, G, REGISTERS == 32 ? 8 : 6, 2>(t, pixels, v);
  }
  for (; v < t.vectors; ++v) product_vectors<T, G, G == 1 || REGISTERS == 32 ? 8 : 6, 1>(t, pixels, v);
}

template <typename T, int G, int R, int B>
ALWAYS_INLINE void outer_block(const T* dy, int64_t dy_pixel, const T* z, int64_t z_pixel, int64_t pixels, T* acc,
                               int64_t width) {
  using V = Vec<T>;
  constexpr int L = LANES<T>;
  V sum[R][B] = {};
  for (int64_t p = 0; p < pixels; ++p) {
    V value[B];
#pragma GCC unroll 3
    for (int b = 0; b < B; ++b) {
      value[b] = pinned(load(z + p * z_pixel + b * L));
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      V grad = all(dy[p * dy_pixel + r]);
      if constexpr (B > 1) pin(grad);
#pragma GCC unroll 3
      for (int b = 0; b < B; ++b) sum[r][b] += grad * value[b];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
    for (int b = 0; b < B; ++b) store(acc + r * width + b * L, load(acc + r * width + b * L) + sum[r][b]);
  }
}

template <typename T, int G, int I>
ALWAYS_INLINE void outer_lanes(Vec<T> grad, Vec<T> value, Vec<T>* sum) {
  if constexpr (I < LANES<T> / G) {
    sum[I] += spread<T, G, I>(grad) * value;
    outer_lanes<T, G, I + 1>(grad, value, sum);
  }
}

template <typename T, int G, int B>
ALWAYS_INLINE void outer_rows(const T* dy, int64_t dy_pixel, int rows, const T* z, int64_t z_pixel, int64_t pixels,
                              T* acc, int64_t width) {
  int r = 0;
  constexpr int MOST = REGISTERS == 32 ? (B == 1 ? 16 : 8) : (B == 1 ? 12 : 6);
  for (; r + MOST <= rows; r += MOST) {
    outer_block<T, G, MOST, B>(dy + r, dy_pixel, z, z_pixel, pixels, acc + r * width, width);
  }
  if constexpr (MOST > 4) {
    for (; r + 4 <= rows; r += 4) outer_block<T, G, 4, B>(dy + r, dy_pixel, z, z_pixel, pixels, acc + r * width, width);
  }
  for (; r < rows; ++r) outer_block<T, G, 1, B>(dy + r, dy_pixel, z, z_pixel, pixels, acc + r * width, width);
}

// acc[row][:] += sum over pixels of dy[row] * z[:]: (rows, vectors * L). With G > 1 each lane keeps its own image's
// sum, rows is L / G.
template <typename T, int G>
void outer(const T* dy, int64_t dy_pixel, int rows, const T* z, int64_t z_pixel, int64_t vectors, int64_t pixels,
           T* acc) {
  constexpr int L = LANES<T>;
  const int64_t width = vectors * L;
  if constexpr (G == 1) {
    int64_t v = 0;
    for (; v + 2 == vectors || v + (REGISTERS == 32 ? 3 : 2) < vectors; v += 2) {
      outer_rows<T, G, 2>(dy, dy_pixel, rows, z + v * L, z_pixel, pixels, acc + v * L, width);
    }
    if constexpr (REGISTERS == 32) {
      if (v + 3 == vectors) {
        outer_rows<T, G, 3>(dy, dy_pixel, rows, z + v * L, z_pixel, pixels, acc + v * L, width);
        v += 3;
      }
    }
    for (; v < vectors; ++v) {
      outer_rows<T, G, 1>(dy, dy_pixel, rows, z + v * L, z_pixel, pixels, acc + v * L, width);
    }
  } else {
    Vec<T> sum[L / G] = {};
    for (int64_t p = 0; p < pixels; ++p) {
      outer_lanes<T, G, 0>(load(dy + p * dy_pixel), load(z + p * z_pixel), sum);
    }
#pragma GCC unroll 8
    for (int r = 0; r < L / G; ++r) store(acc + r * L, load(acc + r * L) + sum[r]);
  }
}

}  // namespace fastdarts::ISA
