// A kernel as phases between barriers, so that one source is device code and plain C++: on a GPU the threads of a block
// run the phases in parallel with a barrier after each, elsewhere (harness.cpp) one after the other, phase by
// phase.
//
// A kernel is a struct, and an object of it is one thread of a block:
//   THREADS             of a block
//   ROUND, AFTER        how many phases each round has, and how many follow the last round
//   Args, Shared        the arguments, and what a block's threads share (not initialised)
//   (Args, Shared, block, thread)   constructor; it may write to Shared, never read it
//   rounds()            how often the ROUND phases are gone through; the same for all threads of a block
//   phase<I>(round)     phase I, those after the last round being ROUND, ROUND + 1, ...
// Within a phase no thread reads what another one writes. Sums have a fixed order; there are no floating-point
// atomics.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define FASTDARTS_FN __device__ __forceinline__
#else
#include <cmath>
#include <cstring>
#define FASTDARTS_FN inline
#endif

namespace fastdarts::cuda {

// Numbers of 16 bits in memory; arithmetic is float.
struct alignas(2) Half {
  uint16_t bits;
};
struct alignas(2) Bfloat16 {
  uint16_t bits;
};

enum class Dtype : int { float32, float16, bfloat16 };

#if defined(__CUDACC__)

FASTDARTS_FN float to_float(float x) { return x; }
FASTDARTS_FN float to_float(Half x) { return __half2float(__ushort_as_half(x.bits)); }
FASTDARTS_FN float to_float(Bfloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
FASTDARTS_FN void assign(float& to, float x) { to = x; }
FASTDARTS_FN void assign(Half& to, float x) { to.bits = __half_as_ushort(__float2half_rn(x)); }
FASTDARTS_FN void assign(Bfloat16& to, float x) { to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
FASTDARTS_FN void add_count(int& to, int n) { atomicAdd(&to, n); }

template <class K, int FIRST, int LAST>
FASTDARTS_FN void phases(K& thread, int round) {
  if constexpr (FIRST < LAST) {
    thread.template phase<FIRST>(round);
    __syncthreads();
    phases<K, FIRST + 1, LAST>(thread, round);
  }
}

template <class K>
__global__ void __launch_bounds__(K::THREADS, 1) run_block(const __grid_constant__ typename K::Args args) {
  __shared__ typename K::Shared shared;
  K thread(args, shared, static_cast<int>(blockIdx.x), static_cast<int>(threadIdx.x));
  const int rounds = thread.rounds();
  for (int round = 0; round < rounds; ++round) phases<K, 0, K::ROUND>(thread, round);
  phases<K, K::ROUND, K::ROUND + K::AFTER>(thread, rounds);
}

#else

inline float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float to_float(float x) { return x; }
inline float to_float(Bfloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, rest = x.bits & 0x7FFF;
  if (rest >= 0x7C00) return from_bits(sign | 0x7F800000 | (rest & 0x3FF) << 13);
  const float size =
      from_bits(rest << 13) * 0x1p112F;  // the exponent counts from 15, not 127; subnormals come right too
  return from_bits(sign | bits_of(size));
}
inline void assign(float& to, float x) { to = x; }
inline void assign(Bfloat16& to, float x) {
  const uint32_t bits = bits_of(x);
  to.bits = std::isnan(x) ? 0x7FFF : static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline void assign(Half& to, float x) {
  const auto sign = static_cast<uint16_t>(bits_of(x) >> 16 & 0x8000);
  const float size = std::fabs(x);
  uint32_t bits = 0;
  if (std::isnan(x)) {
    bits = 0x7FFF;
  } else if (size >= 65520.0F) {
    bits = 0x7C00;
  } else if (size < 0x1p-14F) {
    bits = static_cast<uint32_t>(std::nearbyint(size * 0x1p24F));
  } else {
    const uint32_t wide = bits_of(size) - (112U << 23);
    bits = (wide + 0xFFF + (wide >> 13 & 1)) >> 13;
  }
  to.bits = static_cast<uint16_t>(sign | bits);
}
inline void add_count(int& to, int n) { to += n; }

#endif

// N adjacent numbers, read or written at once if aligned to their whole size.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T lane[N];
};

template <class T, int N>
FASTDARTS_FN Vector<T, N> load(const T* p) {
  return *reinterpret_cast<const Vector<T, N>*>(p);
}
template <class T, int N>
FASTDARTS_FN void store(T* p, const Vector<T, N>& v) {
  *reinterpret_cast<Vector<T, N>*>(p) = v;
}

FASTDARTS_FN int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
FASTDARTS_FN int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }
FASTDARTS_FN float rectified(float x) { return x <= 0 ? 0.0F : x; }  // ReLU that keeps NaN

}  // namespace fastdarts::cuda
