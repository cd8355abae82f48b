// Base of both directions of the fused cell: sizes, conversion between NHWC and block layout (mixed_cell.h), matrices
// in kernel layout, one convolution's outputs.
#pragma once

#include "depthwise.h"
#include "isa.h"
#include "mixed_cell.h"
#include "numbers.h"
#include "pointwise.h"
#include "pool.h"
#include "ranks.h"
#include "scratch.h"
#include "stages.h"

namespace fastdarts::ISA {
namespace {

constexpr int64_t PAD = 4;  // zero pixels around an image: the reach of the widest kernel (5 taps, dilation 2)
constexpr bool BOTH[] = {true, false}, ORDER[] = {false, true};

// Base of both directions: sizes, conversion between NHWC and block layout, a convolution's outputs.
template <typename T, int G>
class Cell {
 protected:
  using V = Vec<T>;
  static constexpr int L = LANES<T>;
  static constexpr int LANES_EACH = L / G;

  explicit Cell(const CellPlan& plan)
      : p(plan),
        width(plan.vectors * L),
        pixels(plan.Ho * plan.Wo),
        image(pixels * width),
        rows_of_matrix(G == 1 ? static_cast<int>(plan.Cq) : LANES_EACH),
        tile_rows(TILE / plan.Wo < 1 ? 1 : smaller(TILE / plan.Wo, plan.Ho)) {}

  const CellPlan& p;
  const int64_t width;       // numbers of a pixel
  const int64_t pixels;      // of an output image
  const int64_t image;       // numbers of an output image
  const int rows_of_matrix;  // of a pointwise matrix in kernel layout
  const int64_t tile_rows;   // output rows of a tile

  // ------------------------------------------------------------------------------------------------- geometry

  int64_t height(int state) const { return state < p.inputs ? p.H : p.Ho; }
  int64_t columns(int state) const { return state < p.inputs ? p.W : p.Wo; }
  int64_t padded_row(int64_t cols) const { return (cols + 2 * PAD) * width; }
  int64_t padded(int64_t rows, int64_t cols) const { return (rows + 2 * PAD) * padded_row(cols); }
  T* inside(T* padded_image, int64_t cols) const { return padded_image + PAD * padded_row(cols) + PAD * width; }

  // Zero around an image that is about to be written.
  void clear_border(T* padded_image, int64_t rows, int64_t cols) const {
    const int64_t row = padded_row(cols), side = PAD * width;
    clear(padded_image, PAD * row + side);
    for (int64_t r = 0; r + 1 < rows; ++r) clear(inside(padded_image, cols) + r * row + cols * width, 2 * side);
    clear(inside(padded_image, cols) + (rows - 1) * row + cols * width, side + PAD * row);
  }

  int64_t images_in(int64_t block) const { return smaller<int64_t>(G, p.N - block * G); }

  // Channel c of a vector's images, added up or picked: lane (g, c).
  int64_t lane(int g, int64_t c) const { return g * LANES_EACH + c; }

  int64_t depthwise_size(const Unit& u) const { return u.kernel * u.kernel * width; }
  int64_t matrix_size(const Unit& u) const { return (u.kernel ? 1 : u.taps) * rows_of_matrix * width; }

  // ------------------------------------------------------------------------------------------------- layouts

  bool in_order(const int* channels) const {
    bool result = true;
    for (int64_t c = 1; c < p.Cq; ++c) result &= channels[c] == channels[0] + c;
    return result;
  }

  // A block of an NHWC tensor in block layout; lanes without a channel or an image are zero.
  void gather(const T* nhwc, int64_t n_pixels, int64_t block, const int* channels, T* to) const {
    const bool ordered = in_order(channels);
    if constexpr (G > 1) {
      clear(to, n_pixels * width);
    } else if (p.Cq != width) {  // the last vector has lanes without a channel
      for (int64_t q = 1; q <= n_pixels; ++q) store(to + q * width - L, V{});
    }
    for (int g = 0; g < images_in(block); ++g) {
      const T* from = nhwc + (block * G + g) * n_pixels * p.C;
      T* at = to + lane(g, 0);
      if (ordered) {
        copy_pixels(from + channels[0], p.C, n_pixels, p.Cq, at, width);
      } else {
        for (int64_t q = 0; q < n_pixels; ++q) {
          for (int64_t i = 0; i < p.Cq; ++i) at[q * width + i] = from[q * p.C + channels[i]];
        }
      }
    }
  }

  // The transpose: adds a block to its channels' places.
  void scatter_add(const T* from, int64_t n_pixels, int64_t block, const int* channels, T* nhwc) const {
    const bool ordered = in_order(channels);
    for (int g = 0; g < images_in(block); ++g) {
      const T* at = from + lane(g, 0);
      T* to = nhwc + (block * G + g) * n_pixels * p.C;
      for (int64_t q = 0; q < n_pixels && ordered; ++q, at += width, to += p.C) {
        T* here = to + channels[0];
        int64_t i = 0;
        for (; i + L <= p.Cq; i += L) store(here + i, load(here + i) + load(at + i));
        for (; i < p.Cq; ++i) here[i] += at[i];
      }
      for (int64_t q = 0; q < n_pixels && !ordered; ++q) {
        for (int64_t i = 0; i < p.Cq; ++i) to[q * p.C + channels[i]] += at[q * width + i];
      }
    }
  }

  // The input of a first half, padded: relu of `rows` rows of a block.
  void rectify(const T* x, int64_t rows, int64_t cols, T* padded_image) const {
    T* to = inside(padded_image, cols);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < cols * width; i += L) {
        store(to + r * padded_row(cols) + i, rectified(load(x + r * cols * width + i)));
      }
    }
  }

  // Copies of states in block layout, if it differs from their own layout: the inputs', then the nodes'.
  bool in_blocks() const { return p.shared && !p.direct; }
  int64_t size_of(int state) const { return p.blocks * height(state) * columns(state) * width; }
  int64_t all_states() const { return in_blocks() ? p.inputs * size_of(0) + p.nodes * size_of(p.inputs) : 0; }
  int64_t place_of(int state, int64_t block) const {
    const int64_t nodes_before = state < p.inputs ? 0 : state - p.inputs;
    return (state - nodes_before) * size_of(0) + nodes_before * size_of(p.inputs) +
           block * height(state) * columns(state) * width;
  }

  const int* channels(int edge) const { return p.channels + edge * p.Cq; }

  // A block of what an edge reads of a state (or of a tensor of its shape): the state's own memory, its copy in
  // `blocks`, or, where edges differ in their channels, gathered into `buffer`.
  const T* block_of(const T* nhwc, const T* blocks, int state, int64_t block, int edge, T* buffer) const {
    const int64_t n = height(state) * columns(state);
    if (p.direct) return nhwc + block * n * width;
    if (in_blocks()) return blocks + place_of(state, block);
    gather(nhwc, n, block, channels(edge), buffer);
    return buffer;
  }
  int64_t buffer_size(int state) const { return p.direct || in_blocks() ? 0 : height(state) * columns(state) * width; }

  // A number for each channel, in every lane that holds the channel.
  template <typename Value>
  void expand(T* to, Value&& value) const {
    clear(to, width);
    for (int g = 0; g < G; ++g) {
      for (int64_t c = 0; c < p.Cq; ++c) to[lane(g, c)] = static_cast<T>(value(c));
    }
  }

  // numbers *= the weights (E, N) of an edge's images, of a block, in n pixels of each.
  template <typename Number>
  void weigh_images(const double* edges, int edge, int64_t block, int64_t n, Number* numbers) const {
    for (int g = 0; g < G; ++g) {
      const double weight = g < images_in(block) ? edges[edge * p.N + block * G + g] : 0;
      const int64_t count = G == 1 ? width : LANES_EACH;
      for (int64_t q = 0; q < n; ++q) {
        for (int64_t c = 0; c < count; ++c) numbers[q * width + lane(g, c)] *= static_cast<Number>(weight);
      }
    }
  }

  // The sum over a block's images of each channel's lanes.
  double channel_sum(const double* lanes, int64_t block, int64_t c) const {
    double sum = 0;
    for (int g = 0; g < images_in(block); ++g) sum += lanes[lane(g, c)];
    return sum;
  }

  // ------------------------------------------------------------------------------------------------ matrices

  // A unit's matrices in kernel layout: the depthwise taps, the same back to front, then the pointwise matrix with
  // its rows over input channels, or (transposed) over output channels.
  void pack(const Unit& u, const T* weights, bool transposed, T* to) const {
    const int64_t taps = u.kernel * u.kernel;
    for (int64_t t = 0; t < taps; ++t) {
      expand(to + t * width, [&](int64_t c) { return weights[u.depthwise + c * taps + t]; });
      expand(to + (taps + t) * width, [&](int64_t c) { return weights[u.depthwise + c * taps + taps - 1 - t]; });
    }
    to += 2 * taps * width;
    for (int t = 0; t < (u.kernel ? 1 : u.taps); ++t) {
      for (int64_t row = 0; row < rows_of_matrix; ++row, to += width) {
        if (row >= p.Cq) {
          clear(to, width);
        } else if (u.halves) {
          expand(to,
                 [&](int64_t c) { return transposed ? matrix(u, weights, t, row, c) : matrix(u, weights, t, c, row); });
        } else {
          const int64_t dense = u.kernel ? 1 : u.taps;
          const T* from = weights + u.pointwise + t + row * dense * (transposed ? p.Cq : 1);
          const int64_t apart = dense * (transposed ? 1 : p.Cq);
          expand(to, [&](int64_t c) { return from[c * apart]; });
        }
      }
    }
  }

  static T matrix(const CellPlan& p, const Unit& u, const T* weights, int tap, int64_t out, int64_t in) {
    const int64_t half = p.Cq / 2;
    if (u.halves) return out / half == tap ? weights[u.pointwise + out * p.Cq + in] : T(0);
    const int64_t taps = u.kernel ? 1 : u.taps;
    return weights[u.pointwise + (out * p.Cq + in) * taps + tap];
  }
  T matrix(const Unit& u, const T* weights, int tap, int64_t out, int64_t in) const {
    return matrix(p, u, weights, tap, out, in);
  }

  void pack_all(const T* weights, bool transposed, T* packed) const {
    const Timed timed(Stage::pack);
    for_each(p.num_units, [&](int64_t i) { pack(p.units[i], weights, transposed, packed + p.units[i].pack); });
  }

  // ---------------------------------------------------------------------------------------------- convolution

  // The start of a padded image for output (r, 0) of a unit.
  const T* first_tap(const Unit& u, const T* padded_image, int64_t row, int64_t r) const {
    const int64_t reach = u.dilation * (u.kernel - 1) / 2;
    return padded_image + (r * u.stride + PAD - reach) * row + (PAD - reach) * width;
  }

  void depthwise_tile(const Unit& u, const T* padded_image, int64_t row, int64_t r0, int64_t r1, const T* taps,
                      T* tile) const {
    const auto depthwise = depthwise_of<T>(u.kernel, u.dilation, u.stride);
    for (int64_t r = r0; r < r1; ++r) {
      for (int64_t i = 0; i < width; i += L) {
        depthwise(first_tap(u, padded_image, row, r) + i, row, width, taps + i, width,
                  tile + (r - r0) * p.Wo * width + i, width, p.Wo, false);
      }
    }
  }

  void tap_offsets(const Unit& u, int64_t row, int64_t* offsets) const {
    for (int t = 0; t < u.taps; ++t) offsets[t] = u.tap_row[t] * row + u.tap_col[t] * width;
  }

  // Output rows r0 .. r1 of a unit, from `first`; `sums` as in Product.
  void convolve(const Unit& u, const T* padded_image, int64_t row, int64_t r0, int64_t r1, const T* packed,
                const T* first, T* tile, T* y, T* sums) const {
    const T* matrices = packed + 2 * depthwise_size(u);
    constexpr int64_t here[] = {0};
    if (u.kernel) {
      depthwise_tile(u, padded_image, row, r0, r1, packed, tile);
      pointwise<T, G>({tile, width, here, 1, rows_of_matrix, matrices, p.vectors, Start::vector, first, y, width, sums},
                      (r1 - r0) * p.Wo);
      return;
    }
    int64_t offsets[9];
    tap_offsets(u, row, offsets);
    for (int64_t r = r0; r < r1; ++r) {
      const T* in = padded_image + (r * u.stride + PAD) * row + PAD * width;
      pointwise<T, G>({in, u.stride * width, offsets, u.taps, rows_of_matrix, matrices, p.vectors, Start::vector, first,
                       y + (r - r0) * p.Wo * width, width, sums},
                      p.Wo);
    }
  }

  // The input of a second half, padded: relu of the normalised first half; `rows` rows from the first.
  void middle(const T* y, const T* scale, const T* shift, int64_t rows, T* padded_image) const {
    const int64_t row = padded_row(p.Wo);
    T* to = inside(padded_image, p.Wo);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < p.Wo; ++c) {
        for (int64_t i = 0; i < width; i += L) {
          const V v = load(y + (r * p.Wo + c) * width + i) * load(scale + i) + load(shift + i);
          store(to + r * row + c * width + i, rectified(v));
        }
      }
    }
  }

  // ---------------------------------------------------------------------------------------------------- BN

  double inverse_std(const double* variance, int bn, int64_t c) const {
    return 1 / root(variance[bn * p.Cq + c] + p.eps);
  }

  // Affine parameters of a BN.
  double scale_of(int bn, int64_t c) const { return p.scale == nullptr ? 1 : p.scale[bn * p.Cq + c]; }
  double shift_of(int bn, int64_t c) const { return p.shift == nullptr ? 0 : p.shift[bn * p.Cq + c]; }

  // The BN's output is y * scale + shift, y less its pivot.
  void normalisation(int bn, const double* mean, const double* variance, const T* pivots, T* scale, T* shift) const {
    const auto factor = [&](int64_t c) { return scale_of(bn, c) * inverse_std(variance, bn, c); };
    expand(scale, factor);
    expand(shift, [&](int64_t c) {
      return (static_cast<double>(pivots[bn * p.Cq + c]) - mean[bn * p.Cq + c]) * factor(c) + shift_of(bn, c);
    });
  }

  // Row r of the channels that bypass an edge's candidates, of one image: of the state itself, or of its 2x2 maxima, in
  // `buffer`.
  const T* pass_row(const MixedEdge& e, const T* x, int64_t r, T* buffer) const {
    const int64_t w = columns(e.source);
    if (e.stride == 1) return x + r * w * p.C;
    for (int64_t q = 0; q < p.Wo; ++q) {
      const T* from = x + (2 * r * w + 2 * q) * p.C;
      const T* under = from + w * p.C;
      int64_t i = 0;
      for (; i + L <= p.C; i += L) {
        const V above = larger(load(from + p.C + i), load(from + i)),
                below = larger(load(under + p.C + i), load(under + i));
        store(buffer + q * p.C + i, larger(below, above));
      }
      for (; i < p.C; ++i) {
        const T above = larger(from[p.C + i], from[i]), below = larger(under[p.C + i], under[i]);
        buffer[q * p.C + i] = larger(below, above);
      }
    }
    return buffer;
  }

  void pool(bool max, const T* x, int state, int stride, int64_t r, const T* start, T* line, T* out) const {
    const auto row = max ? pool_row<T, true> : pool_row<T, false>;
    row(x, height(state), columns(state), width, stride, r, p.Wo, start, line, out);
  }

  // acc (double, width) += sum over n pixels of a * b; b nullptr: of a.
  void dot(const T* a, const T* b, int64_t n, double* acc) const {
    for (int64_t i = 0; i < width; i += L) {
      for (int64_t from = 0; from < n; from += TILE) {
        const int64_t to = smaller(n, from + TILE);
        V sum[4] = {};
        int64_t q = from;
        if (b == nullptr) {
          for (; q < to; ++q) sum[0] += load(a + q * width + i);
        } else {
          for (; q + 4 <= to; q += 4) {
#pragma GCC unroll 4
            for (int s = 0; s < 4; ++s) sum[s] += load(a + (q + s) * width + i) * load(b + (q + s) * width + i);
          }
          for (; q < to; ++q) sum[0] += load(a + q * width + i) * load(b + q * width + i);
        }
        const V all_four = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        fold_vector<T>(all_four, acc + i);
      }
    }
  }
};

}  // namespace
}  // namespace fastdarts::ISA
