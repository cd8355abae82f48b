// One box resized to S x S pixels, for one instruction set. fastdarts/ops/random_resized_crop.py has the definition,
// which this must equal bit for bit.
//
// A row of the box becomes floats, then a row of S pixels (rounded) in a ring of as many rows as an output row needs;
// an output row is the weighted sum of those. Weights and sums are integers below 2^24, so float32 is exact and fast.
//
// Notation: h x w pixels of the box, S pixels a side of the output, n = h or w, numbers = 3 * pixels.
#include "../rows.h"
#include "isa.h"
#include "random_resized_crop.h"
#include "scratch.h"
#include "vector.h"

namespace fastdarts::ISA {
namespace {

using Quad = float __attribute__((vector_size(16)));  // a pixel and one number of the next

constexpr float HALF = 1 << (CROP_BITS - 1), UNIT = 1.0F / (1 << CROP_BITS);
constexpr int64_t COLOURS = 3;
constexpr int64_t ROWS = 4;                                     // rows of the box that share the loads of the weights
constexpr int64_t VECTORS = 4, BLOCK = VECTORS * LANES<float>;  // numbers of an output row at once

template <typename T>
constexpr T larger_of(T a, T b) {
  return a > b ? a : b;
}

constexpr int64_t whole(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

// The most pixels of the n that one output needs.
int64_t most_taps(int64_t n, int64_t S) { return smaller(n, (2 * larger_of(S, n) + S - 1) / S); }

// Output i is the sum over k in 0 .. taps of weight[i * taps + k] times input first[i] + k, in units of 2^-14.
struct Axis {
  int64_t taps;
  int32_t* first;
  float* weight;
};

void fill(int64_t n, int64_t S, const Axis& axis) {
  const int64_t M = larger_of(S, n);
  for (int64_t i = 0; i < S; ++i) {
    const int64_t centre = (2 * i + 1) * n;
    const int64_t from = larger_of(centre + S - 2 * M, int64_t{0}) / (2 * S);
    const int64_t first = smaller(from, n - axis.taps);
    const auto share = [&](int64_t k) {
      const int64_t distance = (2 * (first + k) + 1) * S - centre;
      return larger_of(2 * M - (distance < 0 ? -distance : distance), int64_t{0});
    };
    int64_t total = 0, sum = 0, before = 0;
    for (int64_t k = 0; k < axis.taps; ++k) total += share(k);
    for (int64_t k = 0; k < axis.taps; ++k) {
      sum += share(k);
      const int64_t upto = ((sum << (CROP_BITS + 1)) + total) / (2 * total);
      axis.weight[i * axis.taps + k] = static_cast<float>(upto - before);
      before = upto;
    }
    axis.first[i] = static_cast<int32_t>(first);
  }
}

ALWAYS_INLINE Quad load_quad(const float* from) {
  Quad v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

// The integer part of (sum + 2^13) / 2^14, `sum` being 2^13 more already.
ALWAYS_INLINE Quad rounded(Quad sum) {
  using Integers = int32_t __attribute__((vector_size(16)));
  return __builtin_convertvector(__builtin_convertvector(sum * UNIT, Integers), Quad);
}

// ROWS rows of floats, `pitch` apart, to S pixels each, a row of the ring. The fourth number that is written with each
// pixel is overwritten by the next one.
template <int64_t TAPS>
void across(const float* in, int64_t pitch, const Axis& axis, int64_t S, float* const* out) {
  const int64_t taps = TAPS ? TAPS : axis.taps;
  const float* weight = axis.weight;
  for (int64_t i = 0; i < S; ++i, weight += taps) {
    const float* from = in + COLOURS * axis.first[i];
    Quad sum[ROWS];
    for (int64_t r = 0; r < ROWS; ++r) sum[r] = HALF - Quad{};
#pragma GCC unroll 4
    for (int64_t k = 0; k < taps; ++k) {
      const Quad w = weight[k] - Quad{};  // minus zero changes no number: nothing but a broadcast is left
      for (int64_t r = 0; r < ROWS; ++r) sum[r] += w * load_quad(from + r * pitch + COLOURS * k);
    }
    for (int64_t r = 0; r < ROWS; ++r) {
      const Quad value = rounded(sum[r]);
      __builtin_memcpy(out[r] + COLOURS * i, &value, sizeof value);
    }
  }
}

void widen(const uint8_t* __restrict from, int64_t n, float* __restrict to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

// The weighted sum of rows row[0 .. taps] of the ring, read in whole blocks.
template <int64_t TAPS>
void down(const float* const* row, int64_t taps_given, const float* weight, int64_t numbers, uint8_t* __restrict out) {
  using Integers = VectorOf<float>::Mask;
  const int64_t taps = TAPS ? TAPS : taps_given;
  for (int64_t x = 0; x < numbers; x += BLOCK) {
    Vec<float> sum[VECTORS];
    for (int64_t v = 0; v < VECTORS; ++v) sum[v] = all(HALF);
#pragma GCC unroll 4
    for (int64_t k = 0; k < taps; ++k) {
      const Vec<float> w = all(weight[k]);
      for (int64_t v = 0; v < VECTORS; ++v) sum[v] += w * load(row[k] + x + v * LANES<float>);
    }
    int32_t value[BLOCK];
    for (int64_t v = 0; v < VECTORS; ++v) {
      const Integers integers = __builtin_convertvector(sum[v] * UNIT, Integers);
      __builtin_memcpy(value + v * LANES<float>, &integers, sizeof integers);
    }
    uint8_t bytes[BLOCK];  // compilers narrow well in a plain loop, and badly in vectors
    for (int64_t i = 0; i < BLOCK; ++i) bytes[i] = static_cast<uint8_t>(value[i]);
    if (x + BLOCK <= numbers) {
      __builtin_memcpy(out + x, bytes, sizeof bytes);
    } else {
      __builtin_memcpy(out + x, bytes, numbers - x);
    }
  }
}

using Across = void (*)(const float*, int64_t, const Axis&, int64_t, float* const*);
using Down = void (*)(const float* const*, int64_t, const float*, int64_t, uint8_t*);
constexpr int64_t COMMON = 5;  // numbers of taps below this have separate loops
constexpr Across ACROSS[COMMON] = {across<0>, across<1>, across<2>, across<3>, across<4>};
constexpr Down DOWN[COMMON] = {down<0>, down<1>, down<2>, down<3>, down<4>};

// `axis` of an axis of n pixels, in memory that follows `memory`; returns what follows it.
float* place(int64_t n, int64_t S, float* memory, Axis& axis) {
  axis.taps = most_taps(n, S);
  axis.first = reinterpret_cast<int32_t*>(memory);
  axis.weight = memory + S;
  return axis.weight + S * axis.taps;
}

void resize(const random_resized_crop::Box& box) {
  const int64_t S = box.S, numbers = COLOURS * S, wide = COLOURS * box.w;
  const int64_t ring_rows = most_taps(box.h, S) + ROWS;
  const int64_t in_pitch = whole(wide + 1, 16), ring_pitch = whole(numbers + 1, BLOCK);
  const int64_t weights = S * (2 + most_taps(box.w, S) + most_taps(box.h, S));
  const Scratch<float> memory(ROWS * in_pitch + ring_rows * ring_pitch + weights);
  const Scratch<float*> row(ring_rows);
  float *in = memory, *ring = in + ROWS * in_pitch;
  Axis columns, rows;
  place(box.h, S, place(box.w, S, ring + ring_rows * ring_pitch, columns), rows);
  fill(box.w, S, columns);
  fill(box.h, S, rows);
  const Across to_ring = ACROSS[columns.taps < COMMON ? columns.taps : 0];
  const Down from_ring = DOWN[rows.taps < COMMON ? rows.taps : 0];
  // numbers that are never written but read with the last pixel or block
  for (int64_t r = 0; r < ROWS; ++r) in[r * in_pitch + wide] = 0;
  for (int64_t r = 0; r < ring_rows; ++r) {
    for (int64_t x = numbers; x < ring_pitch; ++x) ring[r * ring_pitch + x] = 0;
  }
  int64_t ready = rows.first[0];  // rows of the box below this are in the ring, as far as they are needed
  for (int64_t i = 0; i < S; ++i) {
    const int64_t first = rows.first[i];
    ready = larger_of(ready, first);
    for (; ready < first + rows.taps; ready += ROWS) {
      for (int64_t r = 0; r < ROWS; ++r) {
        const int64_t source = smaller(ready + r, box.h - 1);
        widen(box.pixels + source * box.pitch, wide, in + r * in_pitch);
        row[r] = ring + (ready + r) % ring_rows * ring_pitch;
      }
      to_ring(in, in_pitch, columns, S, row);
    }
    for (int64_t k = 0; k < rows.taps; ++k) row[k] = ring + (first + k) % ring_rows * ring_pitch;
    from_ring(row, rows.taps, rows.weight + i * rows.taps, numbers, box.out + i * numbers);
  }
}

}  // namespace

const random_resized_crop::Kernels random_resized_crop_kernels = {resize};

}  // namespace fastdarts::ISA
