// Vectors of the instruction set that this file is compiled for, by the compiler's own vector extension: the same
// source gives AVX-512 (also with vectors of 32 bytes), AVX2, and 16-byte vectors (SSE2, NEON). Only kernel files
// include this (see isa.h).
#pragma once

#include <cstdint>

#ifndef ISA
#error "a kernel file is compiled with -DISA=portable, avx2 or avx512"
#endif

#if defined(__AVX512F__)
#ifndef FASTDARTS_VECTOR_BYTES
#define FASTDARTS_VECTOR_BYTES 64
#endif
#define FASTDARTS_REGISTERS 32
#elif defined(__AVX2__)
#define FASTDARTS_VECTOR_BYTES 32
#define FASTDARTS_REGISTERS 16
#else
#define FASTDARTS_VECTOR_BYTES 16
#if defined(__aarch64__)
#define FASTDARTS_REGISTERS 32
#else
#define FASTDARTS_REGISTERS 16
#endif
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace fastdarts::ISA {

constexpr int REGISTERS = FASTDARTS_REGISTERS;

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Type = float __attribute__((vector_size(FASTDARTS_VECTOR_BYTES)));
  using Mask = int32_t __attribute__((vector_size(FASTDARTS_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  using Type = double __attribute__((vector_size(FASTDARTS_VECTOR_BYTES)));
  using Mask = int64_t __attribute__((vector_size(FASTDARTS_VECTOR_BYTES)));
};

template <typename T>
using Vec = typename VectorOf<T>::Type;
template <typename T>
constexpr int LANES = FASTDARTS_VECTOR_BYTES / sizeof(T);

template <typename T>
ALWAYS_INLINE Vec<T> all(T value) {
  return value - Vec<T>{};  // minus zero changes no number, so that nothing but a broadcast is left
}

// Unaligned: torch's tensors may start at any address.
template <typename T>
ALWAYS_INLINE Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <typename T>
ALWAYS_INLINE void store(T* to, Vec<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

template <typename V>
ALWAYS_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}

// The ReLU; keeps NaN.
template <typename V>
ALWAYS_INLINE V rectified(V v) {
  return v < 0 ? V{} : v;
}

// Keeps a value in a register: without it the compiler folds a shared load into every use of it.
template <typename V>
ALWAYS_INLINE void pin(V& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

// The same for an address: without it the compiler computes the addresses of all of a loop's loads before the loop, far
// more than there are registers, and fetches each from memory again.
template <typename P>
ALWAYS_INLINE void pin_address(P& p) {
  asm("" : "+r"(p));
}

// Of an element of an array: an element that is pinned itself would keep the array in memory.
template <typename V>
ALWAYS_INLINE V pinned(V v) {
  pin(v);
  return v;
}

// A vector or a single number, for a body that each_vector calls with either.
template <typename T>
ALWAYS_INLINE T load(const T* from, T) {
  return *from;
}
template <typename T>
ALWAYS_INLINE Vec<T> load(const T* from, Vec<T>) {
  return load(from);
}
template <typename T>
ALWAYS_INLINE void store(T* to, T value) {
  *to = value;
}

// body(kind, i) for numbers 0 .. n in whole vectors from i, the last of which may repeat numbers of the one before:
// what body writes must not depend on what it wrote. Fewer than a vector come one by one. `kind` says which: see load.
template <typename T, typename Body>
ALWAYS_INLINE void each_vector(int64_t n, const Body& body) {
  constexpr int L = LANES<T>;
  if (n < L) {
    for (int64_t i = 0; i < n; ++i) body(T{}, i);
    return;
  }
  int64_t i = 0;
  for (; i + L <= n; i += L) body(Vec<T>{}, i);
  if (i < n) body(Vec<T>{}, n - L);
}

template <typename T>
constexpr T smaller(T a, T b) {
  return a < b ? a : b;
}

}  // namespace fastdarts::ISA
