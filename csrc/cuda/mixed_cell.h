// Shared by mixed_cell's CUDA kernels: arguments and rows of the plan's table, tiles of pixels with a halo in shared
// memory, sums of a BN. kernels/mixed_cell_plan.py makes the plan; a launch equals that of the Triton kernel of the
// same name: same arguments, table and memory.
//
// Notation: C channels of a state, CQ of them that pass through an edge's candidates, H W pixels of an input, Ho Wo of
// a node, m pixels of all nodes' images. Prefixes: p_ pointer, i_ index, o_ offset in the table. Offsets of tensors
// count blocks of 16 numbers.
#pragma once

#include <type_traits>

#include "../rows.h"
#include "block.h"

namespace fastdarts::cuda {

// The names of the Triton kernels' arguments, a tuple's one by one, and WIDE_MIX: p_ops and p_edges are float32
// whatever the dtype, as under autocast. A kernel has those that it reads, the others are null and 0.
// clang-format off
#define FASTDARTS_CELL_POINTERS(X) \
  X(p_inputs0) X(p_inputs1) X(p_inputs2) X(p_inputs3) X(p_saved) X(p_work) X(p_grad) X(p_grad_inputs0) \
  X(p_grad_inputs1) X(p_grad_inputs2) X(p_grad_inputs3) X(p_weights) X(p_channels) X(p_norms) X(p_statistics) \
  X(p_coefficients) X(p_ops) X(p_edges) X(p_parts) X(p_table)
#define FASTDARTS_CELL_INTEGERS(X) \
  X(o_listed) X(o_units) X(o_edges) X(o_states) X(o_pools) X(H) X(W) X(Ho) X(Wo) X(m) X(pixels) X(per) X(parts) \
  X(columns) X(numbers) X(C) X(CQ) X(NODES) X(TILES) X(CHOSEN) X(BATCH) X(WEIGHTED) X(SECOND) X(DENSE) \
  X(WIDE_MIX)
// clang-format on

struct CellArgs {
#define FASTDARTS_FIELD(name) void* name = nullptr;
  FASTDARTS_CELL_POINTERS(FASTDARTS_FIELD)
#undef FASTDARTS_FIELD
#define FASTDARTS_FIELD(name) int64_t name = 0;
  FASTDARTS_CELL_INTEGERS(FASTDARTS_FIELD)
#undef FASTDARTS_FIELD
};

FASTDARTS_FN const int64_t* table_of(const CellArgs& a) { return static_cast<const int64_t*>(a.p_table); }

template <class T>
FASTDARTS_FN T* at_block(void* p, int64_t block) {
  return static_cast<T*>(p) + block * ALIGN;
}

// Number i of the weights of candidates (p_ops) or edges (p_edges).
template <class T>
FASTDARTS_FN float mix_at(const CellArgs& a, const void* p, int64_t i) {
  return a.WIDE_MIX ? static_cast<const float*>(p)[i] : to_float(static_cast<const T*>(p)[i]);
}

// Images that a stencil reads: address, size, channels of a pixel.
template <class T>
struct Source {
  const T* p;
  int64_t row;            // numbers of a pixel
  const int64_t* chosen;  // which channels, or null: the first
  int height, width, stride;

  FASTDARTS_FN int64_t channel(int64_t c) const { return chosen ? chosen[c] : c; }
};

// A state as an edge reads it: an input, or, for source -1, what the forward kept.
template <class T>
FASTDARTS_FN Source<T> state_of(const CellArgs& a, int64_t source, int64_t state, int64_t edge, int64_t stride) {
  const void* p = source == 0   ? a.p_inputs0
                  : source == 1 ? a.p_inputs1
                  : source == 2 ? a.p_inputs2
                  : source == 3 ? a.p_inputs3
                                : at_block<T>(a.p_saved, state);
  const bool kept = source < 0;
  return {static_cast<const T*>(p),
          a.C,
          a.CHOSEN ? static_cast<const int64_t*>(a.p_channels) + edge * a.CQ : nullptr,
          static_cast<int>(kept ? a.Ho : a.H),
          static_cast<int>(kept ? a.Wo : a.W),
          static_cast<int>(stride)};
}

// A BN's xhat: the mean's head is subtracted before any rounding, its tail is in the shift.
struct Normal {
  float mean, scale, shift;
  FASTDARTS_FN float operator()(float y) const { return (y - mean) * scale + shift; }
};

// Channel c of row i of a (rows, 3, CQ) table of floats.
FASTDARTS_FN Normal three(const void* p_rows, int64_t i, int64_t c, int64_t CQ) {
  const float* p = static_cast<const float*>(p_rows) + i * 3 * CQ + c;
  return {p[0], p[CQ], p[2 * CQ]};
}

// Two channels of a pixel; 0 for one that is not there.
struct Two {
  float lane[2];
};

FASTDARTS_FN Two two_at(const float* shared) {
  const auto v = load<float, 2>(shared);
  return {{v.lane[0], v.lane[1]}};
}

FASTDARTS_FN void four_at(const float* shared, float* to) {
  const auto v = load<float, 4>(shared);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = v.lane[i];
}

// ------------------------------------------------------------------------------------------------------------- tiles

constexpr int TILE = 128;  // pixels of a tile: 8 rows of 16, or 16 rows of 8 where images are narrow
constexpr int STRIP = 4;   // rows that a thread has, of one column and two channels

struct Tile {
  int image, row, column;  // of its first pixel
};

// The pixels [begin, end) of all nodes' images as tiles, none of which reaches beyond its image. A tile may hold pixels
// that are not in the range.
struct Tiles {
  int64_t begin, end;
  int height, width, columns, rows;  // of an image, and of a tile
  int image;                         // the first one
  int row, across, whole;            // its first row in the range; tiles side by side; bands of a whole image
  int first_bands, bands;

  FASTDARTS_FN Tiles(int64_t first, int64_t last, int64_t Ho, int64_t Wo)
      : begin(first), end(last), height(static_cast<int>(Ho)), width(static_cast<int>(Wo)) {
    columns = width <= 8 ? 8 : 16;
    rows = TILE / columns;
    across = (width + columns - 1) / columns;
    whole = (height + rows - 1) / rows;
    const int64_t line = begin / width, last_line = (end - 1) / width;
    const int last_image = static_cast<int>(last_line / height);
    image = static_cast<int>(line / height);
    row = static_cast<int>(line % height);
    const int last_row = static_cast<int>(last_line % height);
    first_bands = ((image == last_image ? last_row + 1 : height) - row + rows - 1) / rows;
    bands = first_bands + (image == last_image ? 0 : (last_image - image - 1) * whole + (last_row + rows) / rows);
  }

  FASTDARTS_FN int count() const { return begin < end ? bands * across : 0; }
  FASTDARTS_FN Tile at(int i) const {
    const int band = i / across, column = (i - band * across) * columns, rest = band - first_bands;
    if (rest < 0) return {image, row + band * rows, column};
    return {image + 1 + rest / whole, rest % whole * rows, column};
  }
  // The number of a pixel, or -1 where there is none or it is not in the range.
  FASTDARTS_FN int64_t pixel(const Tile& t, int i_row, int i_column) const {
    const int r = t.row + i_row, c = t.column + i_column;
    if (r >= height || c >= width) return -1;
    const int64_t i = (int64_t{t.image} * height + r) * width + c;
    return begin <= i && i < end ? i : -1;
  }
};

// The largest number of input pixels that a tile of output pixels reads.
constexpr int halo_pixels(int stride, int reach) {
  const auto side = [&](int n) { return (n - 1) * stride + 1 + 2 * reach; };
  return side(8) * side(16);
}

// The part of a tile that a thread works on: two channels of STRIP pixels below each other. Neighbours have the next
// channels, then the next column: reading a row of them has no bank conflicts at stride 1.
template <int CB>
struct Strip {
  static constexpr int THREADS = TILE / STRIP * CB / 2;
  int channel, column, row;

  FASTDARTS_FN Strip(int thread, int columns)
      : channel(thread % (CB / 2) * 2), column(thread / (CB / 2) % columns), row(thread / (CB / 2) / columns * STRIP) {}
};

// What reaches a tile from input pixels, CB channels from `first` on, as floats in shared memory: f(number, lane) of
// each number inside the image, 0 outside; lanes are the same for each pixel that a thread loads. THREADS is a multiple
// of CB.
template <int CB, int THREADS, class T, class F>
FASTDARTS_FN void load_halo(float* to, const Source<T>& x, const Tiles& tiles, const Tile& tile, int reach,
                            int64_t first, int64_t CQ, int thread, F f) {
  constexpr int LANES = 16 / static_cast<int>(sizeof(T)) < CB ? 16 / static_cast<int>(sizeof(T)) : CB;
  constexpr int GROUPS = CB / LANES;
  const int width = (tiles.columns - 1) * x.stride + 1 + 2 * reach,
            height = (tiles.rows - 1) * x.stride + 1 + 2 * reach;
  const int row0 = tile.row * x.stride - reach, column0 = tile.column * x.stride - reach;
  const int group = thread % GROUPS * LANES;
  const auto place = reinterpret_cast<std::uintptr_t>(x.p);
  const bool is_wide = !x.chosen && x.row % LANES == 0 && first % LANES == 0 && first + CB <= CQ && place % 16 == 0;
  const T* image = x.p + int64_t{tile.image} * x.height * x.width * x.row;
#pragma unroll 2
  for (int i = thread / GROUPS; i < width * height; i += THREADS / GROUPS) {
    const int row = row0 + i / width, column = column0 + i % width;
    const bool is_inside = 0 <= row && row < x.height && 0 <= column && column < x.width;
    const T* pixel = image + (static_cast<int64_t>(row) * x.width + column) * x.row;
    float* out = to + i * CB + group;
    if (is_inside && is_wide) {
      const auto numbers = load<T, LANES>(pixel + first + group);
#pragma unroll
      for (int lane = 0; lane < LANES; ++lane) out[lane] = f(to_float(numbers.lane[lane]), lane);
    } else {
#pragma unroll
      for (int lane = 0; lane < LANES; ++lane) {
        const int64_t c = first + group + lane;
        out[lane] = is_inside && c < CQ ? f(to_float(pixel[x.channel(c)]), lane) : 0.0F;
      }
    }
  }
}

// Which lanes those are: lane l of load_halo's f is channel first + halo_group<CB, T>(thread) + l.
template <int CB, class T>
FASTDARTS_FN int halo_group(int thread) {
  constexpr int LANES = 16 / static_cast<int>(sizeof(T)) < CB ? 16 / static_cast<int>(sizeof(T)) : CB;
  return thread % (CB / LANES) * LANES;
}

// -------------------------------------------------------------------------------------------------------- two channels

// How a thread finds its two channels, of which one or both may not be there.
struct Channels {
  int64_t first;  // its own among the CQ
  int n;          // 0, 1, 2
  int64_t place[2];
  bool is_wide;  // both at once

  FASTDARTS_FN Channels(int64_t c, int64_t CQ, const int64_t* chosen, int64_t row) : first(c) {
    n = static_cast<int>(CQ - c < 0 ? 0 : CQ - c > 2 ? 2 : CQ - c);
    for (int k = 0; k < 2; ++k) place[k] = k < n ? (chosen ? chosen[c + k] : c + k) : 0;
    is_wide = n == 2 && !chosen && row % 2 == 0 && c % 2 == 0;
  }

  // The same ones behind `gap` others, in pixels of `row` numbers.
  FASTDARTS_FN Channels shifted(int64_t gap, int64_t row) const {
    Channels out = *this;
    for (int k = 0; k < 2; ++k) out.place[k] = k < n ? place[k] + gap : 0;
    out.is_wide = is_wide && gap % 2 == 0 && row % 2 == 0;
    return out;
  }
};

template <class T>
FASTDARTS_FN Two read(const T* pixel, const Channels& c) {
  Two out = {{0.0F, 0.0F}};
  if (c.is_wide) {
    const auto v = load<T, 2>(pixel + c.place[0]);
    out = {{to_float(v.lane[0]), to_float(v.lane[1])}};
  } else {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (k < c.n) out.lane[k] = to_float(pixel[c.place[k]]);
    }
  }
  return out;
}

template <class T>
FASTDARTS_FN void write(T* pixel, const Channels& c, Two value) {
  if (c.is_wide) {
    Vector<T, 2> v;
    assign(v.lane[0], value.lane[0]), assign(v.lane[1], value.lane[1]);
    store<T, 2>(pixel + c.place[0], v);
  } else {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (k < c.n) assign(pixel[c.place[k]], value.lane[k]);
    }
  }
}

// ---------------------------------------------------------------------------------------------------------- sums of a
// BN

// A thread's numbers of N channels: how many, and the sums of y less a pivot (the first of them) and of its square.
template <int N>
struct Deviations {
  float count = 0.0F, pivot[N] = {}, total[N] = {}, squares[N] = {};

  FASTDARTS_FN void add(const float* y) {
    if (count == 0.0F) {
#pragma unroll
      for (int k = 0; k < N; ++k) pivot[k] = y[k];
    }
    count += 1.0F;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float d = y[k] - pivot[k];
      total[k] += d;
      squares[k] += d * d;
    }
  }
};

// Deviations of one channel from several threads.
struct Moments {
  float count, pivot, total, squares;
};

// The sums of one part and channel, (parts, 3, CQ) from slot on: mean, sum of y less the mean (what its rounding left
// over) and of the square. `of(i)` gives n threads' Moments; they are merged in order, in double.
template <class Of>
FASTDARTS_FN void store_sums(const CellArgs& a, int64_t slot, int64_t part, int64_t c, int n, Of of) {
  double count = 0, sum = 0;
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    const Moments one = of(i);
    count += static_cast<double>(one.count);
    sum += static_cast<double>(one.count) * static_cast<double>(one.pivot) + static_cast<double>(one.total);
  }
  const auto mean = static_cast<float>(sum / count);
  double squares = 0;
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    const Moments one = of(i);
    const double gap = static_cast<double>(one.pivot) - static_cast<double>(mean);
    squares += static_cast<double>(one.squares) + 2 * gap * static_cast<double>(one.total) +
               gap * gap * static_cast<double>(one.count);
  }
  float* out = static_cast<float*>(a.p_statistics) + (slot * a.parts + part) * 3 * a.CQ + c;
  out[0] = mean;
  out[a.CQ] = static_cast<float>(sum - count * static_cast<double>(mean));
  out[2 * a.CQ] = static_cast<float>(squares);
}

// f(a number of the dtype).
template <class F>
void with_dtype(Dtype dtype, F f) {
  if (dtype == Dtype::float32) f(float{});
  if (dtype == Dtype::float16) f(Half{});
  if (dtype == Dtype::bfloat16) f(Bfloat16{});
}

}  // namespace fastdarts::cuda
