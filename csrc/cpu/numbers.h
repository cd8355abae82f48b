// Small helpers on runs of numbers, and the sizes that both fused layers work in.
#pragma once

#include <cstddef>

#include "vector.h"

namespace fastdarts::ISA {

constexpr int64_t TILE = 64;   // pixels whose intermediate results stay in the first-level cache
constexpr int64_t CHUNKS = 8;  // runs of images, each with partial weight gradients of its own

template <typename T>
void clear(T* numbers, int64_t n) {
  __builtin_memset(numbers, 0, static_cast<std::size_t>(n) * sizeof(T));
}

template <typename T>
void copy(const T* from, int64_t n, T* to) {
  __builtin_memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
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
