// Depthwise convolutions of one image, its input padded, one vector of channels at a time.
//
// Notation: K taps a side, D dilation, S stride, B outputs of a row that are computed together in registers.
// `row`, `pixel` and `tap` are distances in numbers between rows and pixels of an image and between taps of a kernel.
#pragma once

#include "vector.h"

namespace fastdarts::ISA {

constexpr int WIDEST_KERNEL = 7;

// Whether input pixel i of a line meets tap kx of one of B outputs.
template <int D, int S, int B>
constexpr bool meets(int i, int kx) {
  return i >= kx * D && (i - kx * D) % S == 0 && (i - kx * D) / S < B;
}

template <int K, int D, int S, int B>
constexpr bool meets_any(int i) {
  for (int kx = 0; kx < K; ++kx) {
    if (meets<D, S, B>(i, kx)) return true;
  }
  return false;
}

// A number as an argument: a lambda that is called with it may hand it on to templates.
template <int B>
struct Size {
  constexpr operator int() const { return B; }
};

// Cuts a row's outputs into blocks of 8, then of 4, then of 1; all of 7 where that comes out even and 8 does not.
// Calls body(Size<B>{}, c, count): `count` blocks of B, of at most MOST, from output c.
template <int MOST = 8, typename Body>
ALWAYS_INLINE void cut_row(int64_t width, const Body& body) {
  int64_t c = 0;
  const auto cut = [&](auto B) {
    const int64_t count = (width - c) / B;
    if (count > 0) body(B, c, count);
    c += count * B;
  };
  if constexpr (MOST == 8) {
    if (width % 7 == 0 && width % 8 != 0) cut(Size<7>{});
    cut(Size<8>{});
  }
  cut(Size<4>{});
  cut(Size<1>{});
}

// B outputs of a row; each input pixel is loaded once for each row of taps.
template <typename T, int K, int D, int S, int B>
ALWAYS_INLINE void depthwise_block(const T* x, int64_t row, int64_t pixel, const T* w, int64_t tap, T* out,
                                   int64_t out_pixel, bool accumulate) {
  using V = Vec<T>;
  V sum[B];
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b) sum[b] = accumulate ? load(out + b * out_pixel) : V{};
#pragma GCC unroll 7
  for (int ky = 0; ky < K; ++ky) {
    V weight[K];
#pragma GCC unroll 7
    for (int kx = 0; kx < K; ++kx) {
      weight[kx] = pinned(load(w + (ky * K + kx) * tap));
    }
    const T* line = x + ky * D * row;
    pin_address(line);
#pragma GCC unroll 32
    for (int i = 0; i < (B - 1) * S + (K - 1) * D + 1; ++i) {
      if (!meets_any<K, D, S, B>(i)) continue;
      V value = load(line + i * pixel);
      pin(value);
#pragma GCC unroll 7
      for (int kx = 0; kx < K; ++kx) {
        if (meets<D, S, B>(i, kx)) sum[(i - kx * D) / S] += weight[kx] * value;
      }
    }
  }
  pin_address(out);
#pragma GCC unroll 8
  for (int b = 0; b < B; ++b) store(out + b * out_pixel, sum[b]);
}

// One row of outputs: x points at the first tap of the first output.
template <typename T>
using DepthwiseRow = void (*)(const T* x, int64_t row, int64_t pixel, const T* w, int64_t tap, T* out,
                              int64_t out_pixel, int64_t width, bool accumulate);

template <typename T, int K, int D, int S>
void depthwise_row(const T* x, int64_t row, int64_t pixel, const T* w, int64_t tap, T* out, int64_t out_pixel,
                   int64_t width, bool accumulate) {
  cut_row(width, [&](auto B, int64_t first, int64_t count) {
    const int64_t end = first + count * B;
    for (int64_t c = first; c < end; c += B) {
      depthwise_block<T, K, D, S, B>(x + c * S * pixel, row, pixel, w, tap, out + c * out_pixel, out_pixel, accumulate);
    }
  });
}

// The row function of a kernel; nullptr for one that no candidate has.
template <typename T>
DepthwiseRow<T> depthwise_of(int K, int D, int S) {
  if (K == 3 && D == 1) return S == 1 ? depthwise_row<T, 3, 1, 1> : depthwise_row<T, 3, 1, 2>;
  if (K == 5 && D == 1) return S == 1 ? depthwise_row<T, 5, 1, 1> : depthwise_row<T, 5, 1, 2>;
  if (K == 7 && D == 1) return S == 1 ? depthwise_row<T, 7, 1, 1> : depthwise_row<T, 7, 1, 2>;
  if (K == 3 && D == 2) return S == 1 ? depthwise_row<T, 3, 2, 1> : depthwise_row<T, 3, 2, 2>;
  if (K == 5 && D == 2) return S == 1 ? depthwise_row<T, 5, 2, 1> : depthwise_row<T, 5, 2, 2>;
  return nullptr;
}

// One row of outputs of any small kernel (rows x cols taps, `w` of its first tap): the transpose of a strided kernel
// falls into up to four of them.
template <typename T>
void depthwise_row_of(const T* x, int64_t row, int64_t pixel, const T* w, int rows, int64_t tap_row, int cols,
                      int64_t tap, T* out, int64_t out_pixel, int64_t width) {
  using V = Vec<T>;
  constexpr int B = 8;
  for (int64_t c = 0; c < width; c += B) {
    const int count = static_cast<int>(smaller<int64_t>(B, width - c));
    V sum[B];
    for (int b = 0; b < count; ++b) sum[b] = load(out + (c + b) * out_pixel);
    for (int ky = 0; ky < rows; ++ky) {
      for (int kx = 0; kx < cols; ++kx) {
        const V weight = load(w + ky * tap_row + kx * tap);
        const T* line = x + ky * row + (c + kx) * pixel;
        pin_address(line);
        if (count == B) {
#pragma GCC unroll 8
          for (int b = 0; b < B; ++b) sum[b] += weight * load(line + b * pixel);
        } else {
          for (int b = 0; b < count; ++b) sum[b] += weight * load(line + b * pixel);
        }
      }
    }
    for (int b = 0; b < count; ++b) store(out + (c + b) * out_pixel, sum[b]);
  }
}

// The weight gradient of ROWS rows of taps: acc[ky * K + kx] += sum of x at the tap times dz, over a rectangle of
// `height` x (blocks * B) outputs.
template <typename T, int K, int D, int S, int B, int ROWS>
void depthwise_weight_block(const T* x, int64_t row, int64_t pixel, const T* dz, int64_t dz_row, int64_t height,
                            int64_t blocks, T* acc, int64_t tap) {
  using V = Vec<T>;
  V sum[ROWS * K];
#pragma GCC unroll 21
  for (int t = 0; t < ROWS * K; ++t) sum[t] = load(acc + t * tap);
  for (int64_t r = 0; r < height; ++r) {
    for (int64_t c = 0; c < blocks; ++c) {
      const T* d = dz + r * dz_row + c * B * pixel;
      pin_address(d);
      V grad[B];
#pragma GCC unroll 8
      for (int b = 0; b < B; ++b) {
        grad[b] = pinned(load(d + b * pixel));
      }
#pragma GCC unroll 3
      for (int ky = 0; ky < ROWS; ++ky) {
        const T* line = x + (r * S + ky * D) * row + c * B * S * pixel;
        pin_address(line);
#pragma GCC unroll 32
        for (int i = 0; i < (B - 1) * S + (K - 1) * D + 1; ++i) {
          if (!meets_any<K, D, S, B>(i)) continue;
          V value = load(line + i * pixel);
          pin(value);
#pragma GCC unroll 7
          for (int kx = 0; kx < K; ++kx) {
            if (meets<D, S, B>(i, kx)) sum[ky * K + kx] += grad[(i - kx * D) / S] * value;
          }
        }
      }
    }
  }
#pragma GCC unroll 21
  for (int t = 0; t < ROWS * K; ++t) store(acc + t * tap, sum[t]);
}

// acc[tap] += the weight gradient over `height` rows of `width` outputs; x points at the first tap of the first output.
template <typename T>
using DepthwiseWeight = void (*)(const T* x, int64_t row, int64_t pixel, const T* dz, int64_t dz_row, int64_t height,
                                 int64_t width, T* acc, int64_t tap);

template <typename T, int K, int D, int S>
void depthwise_weight(const T* x, int64_t row, int64_t pixel, const T* dz, int64_t dz_row, int64_t height,
                      int64_t width, T* acc, int64_t tap) {
  // rows of taps whose sums and B gradients fit into the registers
  constexpr int AT_ONCE = REGISTERS == 32 ? 3 : K == 3 ? 3 : K == 5 ? 2 : 1;
  constexpr int LAST = K % AT_ONCE ? K % AT_ONCE : AT_ONCE;  // how many are left for the last time
  for (int ky = 0; ky < K; ky += AT_ONCE) {
    const T* from = x + ky * D * row;
    T* to = acc + ky * K * tap;
    cut_row<REGISTERS == 32 || AT_ONCE == 1 ? 8 : 4>(width, [&](auto B, int64_t c, int64_t count) {
      const auto block = K - ky >= AT_ONCE ? depthwise_weight_block<T, K, D, S, B, AT_ONCE>
                                           : depthwise_weight_block<T, K, D, S, B, LAST>;
      block(from + c * S * pixel, row, pixel, dz + c * pixel, dz_row, height, count, to, tap);
    });
  }
}

template <typename T>
DepthwiseWeight<T> depthwise_weight_of(int K, int D, int S) {
  if (K == 3 && D == 1) return S == 1 ? depthwise_weight<T, 3, 1, 1> : depthwise_weight<T, 3, 1, 2>;
  if (K == 5 && D == 1) return S == 1 ? depthwise_weight<T, 5, 1, 1> : depthwise_weight<T, 5, 1, 2>;
  if (K == 7 && D == 1) return S == 1 ? depthwise_weight<T, 7, 1, 1> : depthwise_weight<T, 7, 1, 2>;
  if (K == 3 && D == 2) return S == 1 ? depthwise_weight<T, 3, 2, 1> : depthwise_weight<T, 3, 2, 2>;
  if (K == 5 && D == 2) return S == 1 ? depthwise_weight<T, 5, 2, 1> : depthwise_weight<T, 5, 2, 2>;
  return nullptr;
}

}  // namespace fastdarts::ISA
