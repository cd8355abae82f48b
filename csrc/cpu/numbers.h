// Small helpers on runs of numbers, and the block sizes of both fused layers.
#pragma once

#include <cstddef>

#include "vector.h"

namespace fastdarts::ISA {

constexpr int64_t TILE = 64;   // pixels whose intermediate results stay in the first-level cache
constexpr int64_t CHUNKS = 8;  // runs of images with separate partial weight gradients

template <typename T>
void clear(T* numbers, int64_t n) {
  __builtin_memset(numbers, 0, static_cast<std::size_t>(n) * sizeof(T));
}

template <typename T>
void copy(const T* from, int64_t n, T* to) {
  __builtin_memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
}

// The same n numbers of each pixel.
template <typename T>
void copy_pixels(const T* from, int64_t from_pixel, int64_t pixels, int64_t n, T* to, int64_t to_pixel) {
  if (n == 4) {
    for (int64_t q = 0; q < pixels; ++q) copy(from + q * from_pixel, 4, to + q * to_pixel);
  } else if (n == 8) {
    for (int64_t q = 0; q < pixels; ++q) copy(from + q * from_pixel, 8, to + q * to_pixel);
  } else {
    for (int64_t q = 0; q < pixels; ++q, from += from_pixel, to += to_pixel) {
      each_vector<T>(n, [&](auto kind, int64_t i) { store(to + i, load(from + i, kind)); });
    }
  }
}

// to += factor * from, pixels of n numbers; factor has n.
template <typename T>
void add_scaled(const T* factor, const T* from, int64_t pixels, int64_t n, T* to) {
  int64_t i = 0;
  for (; i + LANES<T> <= n; i += LANES<T>) {
    const Vec<T> f = load(factor + i);
    for (int64_t q = i; q < pixels * n; q += n) store(to + q, load(to + q) + f * load(from + q));
  }
  for (; i < n; ++i) {
    for (int64_t q = i; q < pixels * n; q += n) to[q] += factor[i] * from[q];
  }
}

// into += the sum over pixels of a * b; n numbers a pixel.
template <typename T>
void add_products(const T* a, const T* b, int64_t pixels, int64_t n, T* into) {
  int64_t i = 0;
  for (; i + LANES<T> <= n; i += LANES<T>) {
    Vec<T> sum = load(into + i);
    for (int64_t q = i; q < pixels * n; q += n) sum += load(a + q) * load(b + q);
    store(into + i, sum);
  }
  for (; i < n; ++i) {
    for (int64_t q = i; q < pixels * n; q += n) into[i] += a[q] * b[q];
  }
}

// to[q][i] = from[q][order[i]], pixels of n numbers.
template <typename T>
void permute(const T* from, const int* order, int64_t pixels, int64_t n, T* to) {
  if (n == LANES<T>) {
    typename VectorOf<T>::Mask lanes;
    for (int l = 0; l < LANES<T>; ++l) lanes[l] = order[l];
    for (int64_t q = 0; q < pixels * n; q += n) store(to + q, __builtin_shuffle(load(from + q), lanes));
    return;
  }
  for (int64_t q = 0; q < pixels * n; q += n) {
    for (int64_t i = 0; i < n; ++i) to[q + i] = from[q + order[i]];
  }
}

// into += sums, sums = 0.
template <typename T>
void fold(T* sums, double* into, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    into[i] += static_cast<double>(sums[i]);
    sums[i] = 0;
  }
}

// into[lane] += v[lane].
template <typename T>
ALWAYS_INLINE void fold_vector(Vec<T> v, double* into) {
  for (int l = 0; l < LANES<T>; ++l) into[l] += static_cast<double>(v[l]);
}

inline double root(double x) { return __builtin_sqrt(x); }

}  // namespace fastdarts::ISA
