// The 3x3 pools of mixed_cell: the sums of their BNs, and their gradients. Launches and notation: mixed_cell.h.
#pragma once

#include "mixed_cell.h"

namespace fastdarts::cuda {

// Maximum, its position among the nine (the first in row-major order), mean and count of a 3x3 window, of two channels.
struct Pooled {
  Two best, mean;
  int place[2];
  float count;
};

// Shared by both kernels of this file: CB channels of a state in shared memory, the windows of a thread's
// strip.
template <class T>
struct PoolTile {
  static constexpr int CB = 32 / static_cast<int>(sizeof(T));  // of the narrowest piece that memory gives
  static constexpr int THREADS = Strip<CB>::THREADS;
  static constexpr int HALO = halo_pixels(2, 1) * CB;

  const int64_t* row;
  Source<T> x;
  int64_t first;  // channel of the block
  int thread;

  FASTDARTS_FN PoolTile(const CellArgs& a, int i_row, int chunk, int t)
      : row(table_of(a) + a.o_pools + table_of(a)[a.o_listed + i_row] * POOL),
        x(state_of<T>(a, row[POOL_SOURCE], row[POOL_STATE], row[POOL_EDGE], row[POOL_STRIDE])),
        first(chunk * CB),
        thread(t) {}

  FASTDARTS_FN void load(float* halo, const CellArgs& a, const Tiles& tiles, const Tile& tile) const {
    load_halo<CB, THREADS>(halo, x, tiles, tile, 1, first, a.CQ, thread, [](float v, int) { return v; });
  }

  // The window of pixel `i` of the strip.
  FASTDARTS_FN Pooled window(const float* halo, const Tiles& tiles, const Tile& tile, const Strip<CB>& strip,
                             int i) const {
    constexpr float LOWEST = -__builtin_huge_valf();
    const int width = (tiles.columns - 1) * x.stride + 3;
    const int row0 = (strip.row + i) * x.stride, column0 = strip.column * x.stride;
    const int i_row = tile.row * x.stride + row0 - 1, i_column = tile.column * x.stride + column0 - 1;
    Pooled out{{{LOWEST, LOWEST}}, {{0.0F, 0.0F}}, {0, 0}, 0.0F};
#pragma unroll
    for (int t = 0; t < 9; ++t) {
      const int r = i_row + t / 3, c = i_column + t % 3;
      const bool is_inside = 0 <= r && r < x.height && 0 <= c && c < x.width;
      const Two v = two_at(halo + ((row0 + t / 3) * width + column0 + t % 3) * CB + strip.channel);
      out.count += is_inside ? 1.0F : 0.0F;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float number = v.lane[k];
        const bool is_better = is_inside && (number > out.best.lane[k] || number != number);
        out.best.lane[k] = is_better ? number : out.best.lane[k];
        out.place[k] = is_better ? t : out.place[k];
        out.mean.lane[k] += number;
      }
    }
    out.mean.lane[0] /= out.count, out.mean.lane[1] /= out.count;
    return out;
  }
};

// The sums of the BNs behind a state's maximum and mean. A block: CB channels of a part.
template <class T>
struct PoolSums {
  using Args = CellArgs;
  using Pools = PoolTile<T>;
  static constexpr int CB = Pools::CB, THREADS = Pools::THREADS, ROUND = 2, AFTER = 2, SHARES = THREADS / (CB / 2);
  union Shared {
    alignas(16) float halo[Pools::HALO];
    Moments moments[2][CB][SHARES];  // of maximum and mean
  };

  const Args& args;
  Shared& shared;
  int chunks, part;
  Pools pools;
  Tiles tiles;
  Strip<CB> strip;
  Deviations<2> highest, average;

  FASTDARTS_FN PoolSums(const Args& a, Shared& s, int block, int t)
      : args(a),
        shared(s),
        chunks(static_cast<int>(up(a.CQ, CB))),
        part(block / chunks % static_cast<int>(a.parts)),
        pools(a, block / chunks / static_cast<int>(a.parts), block % chunks, t),
        tiles(part * a.per, least(part * a.per + a.per, a.m), a.Ho, a.Wo),
        strip(t, tiles.columns) {}
  static int64_t blocks(const Args& a, int64_t programs) { return programs * ((a.CQ + CB - 1) / CB); }
  FASTDARTS_FN int rounds() const { return tiles.count(); }

  template <int PHASE>
  FASTDARTS_FN void phase(int round) {
    if constexpr (PHASE == 0) {
      pools.load(shared.halo, args, tiles, tiles.at(round));
    } else if constexpr (PHASE == 1) {
      const Tile tile = tiles.at(round);
#pragma unroll 1
      for (int i = 0; i < STRIP; ++i) {
        if (tiles.pixel(tile, strip.row + i, strip.column) < 0) continue;
        const Pooled one = pools.window(shared.halo, tiles, tile, strip, i);
        highest.add(one.best.lane), average.add(one.mean.lane);
      }
    } else if constexpr (PHASE == 2) {
      const int share = pools.thread / (CB / 2);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int c = strip.channel + k;
        shared.moments[0][c][share] = {highest.count, highest.pivot[k], highest.total[k], highest.squares[k]};
        shared.moments[1][c][share] = {average.count, average.pivot[k], average.total[k], average.squares[k]};
      }
    } else {
      const int which = pools.thread / CB, c = pools.thread % CB;
      if (which > 1 || pools.first + c >= args.CQ) return;
      const int64_t slot = pools.row[which ? POOL_AVG_SLOT : POOL_MAX_SLOT];
      if (slot < 0) return;
      const Moments* of = shared.moments[which][c];
      store_sums(args, slot, part, pools.first + c, SHARES, [of](int i) { return of[i]; });
    }
  }
};

// Gradients of the maximum and the mean of a state, summed over the edges that pool it; and the place of each maximum.
// A block: CB channels of one tile; the plan's parts leave no sums here, so that tiles need not follow them.
template <class T>
struct PoolGradient {
  using Args = CellArgs;
  using Pools = PoolTile<T>;
  static constexpr int CB = Pools::CB, THREADS = Pools::THREADS, ROUND = 2, AFTER = 0;
  struct Shared {
    alignas(16) float halo[Pools::HALO];
  };

  const Args& args;
  Shared& shared;
  int chunks;
  Tiles tiles;
  Pools pools;
  Tile tile;
  Strip<CB> strip;

  FASTDARTS_FN PoolGradient(const Args& a, Shared& s, int block, int t)
      : args(a),
        shared(s),
        chunks(static_cast<int>(up(a.CQ, CB))),
        tiles(0, a.m, a.Ho, a.Wo),
        pools(a, block / chunks / tiles.count(), block % chunks, t),
        tile(tiles.at(block / chunks % tiles.count())),
        strip(t, tiles.columns) {}
  static int64_t blocks(const Args& a, int64_t programs) {
    const int64_t columns = a.Wo <= 8 ? 8 : 16, rows = TILE / columns, chunks = (a.CQ + CB - 1) / CB;
    const int64_t tiles = (a.Wo + columns - 1) / columns * ((a.Ho + rows - 1) / rows) * (a.m / (a.Ho * a.Wo));
    return programs / a.parts * tiles * chunks;
  }
  FASTDARTS_FN int rounds() const { return 1; }

  template <int PHASE>
  FASTDARTS_FN void phase(int) {
    if constexpr (PHASE == 0) {
      pools.load(shared.halo, args, tiles, tile);
    } else {
      const Channels in(pools.first + strip.channel, args.CQ, pools.x.chosen, args.C);
      const Channels out(pools.first + strip.channel, args.CQ, nullptr, args.CQ);
      if (!in.n) return;
#pragma unroll 1
      for (int i = 0; i < STRIP; ++i) {
        const int64_t pixel = tiles.pixel(tile, strip.row + i, strip.column);
        if (pixel >= 0) write_pixel(pixel, pools.window(shared.halo, tiles, tile, strip, i), in, out);
      }
    }
  }

  FASTDARTS_FN void write_pixel(int64_t pixel, const Pooled& pooled, const Channels& in, const Channels& out) const {
    const int64_t* table = table_of(args);
    Two dmax = {{0.0F, 0.0F}}, davg = {{0.0F, 0.0F}};
    for (int64_t i = pools.row[POOL_LEAVING]; i < pools.row[POOL_LEAVING_END]; ++i) {
      const int64_t* edge = table + args.o_edges + table[i] * EDGE;
      const Two g = read(at_block<T>(args.p_work, edge[EDGE_GRAD]) + pixel * args.C, in);
      if (edge[EDGE_MAX] >= 0) add(dmax, g, pooled.best, edge[EDGE_MAX_NORM], in);
      if (edge[EDGE_AVG] >= 0) add(davg, g, pooled.mean, edge[EDGE_AVG_NORM], in);
      if (edge[EDGE_PLAIN] >= 0) {
        float weight = mix_at<T>(args, args.p_ops, table[i] * args.columns + edge[EDGE_PLAIN]);
        if (args.WEIGHTED) weight *= mix_at<T>(args, args.p_edges, table[i]);
        davg.lane[0] += weight * g.lane[0], davg.lane[1] += weight * g.lane[1];
      }
    }
    davg.lane[0] /= pooled.count, davg.lane[1] /= pooled.count;
    const int64_t place = pixel * args.CQ;
    write(at_block<T>(args.p_work, pools.row[POOL_DMAX]) + place, out, dmax);
    write(at_block<T>(args.p_work, pools.row[POOL_PLACE]) + place, out,
          {{static_cast<float>(pooled.place[0]), static_cast<float>(pooled.place[1])}});
    write(at_block<T>(args.p_work, pools.row[POOL_DAVG]) + place, out, davg);
  }

  // to += dL/d(what a BN normalises) = a (g - c0 - c1 xhat).
  FASTDARTS_FN void add(Two& to, const Two& g, const Two& value, int64_t norm, const Channels& c) const {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (k >= c.n) continue;
      const Normal xhat = three(args.p_norms, norm, c.first + k, args.CQ);
      const Normal a = three(args.p_coefficients, norm, c.first + k, args.CQ);  // a, c0, c1
      to.lane[k] += a.mean * (g.lane[k] - a.scale - xhat(value.lane[k]) * a.shift);
    }
  }
};

// run.template operator()<Kernel>(args, blocks) for the launches of the plan.
template <class Run>
void pool_sums(const CellArgs& args, Dtype dtype, int64_t programs, Run run) {
  with_dtype(dtype,
             [&]<class T>(T) { run.template operator()<PoolSums<T>>(args, PoolSums<T>::blocks(args, programs)); });
}

template <class Run>
void pool_gradient(const CellArgs& args, Dtype dtype, int64_t programs, Run run) {
  with_dtype(dtype, [&]<class T>(T) {
    run.template operator()<PoolGradient<T>>(args, PoolGradient<T>::blocks(args, programs));
  });
}

}  // namespace fastdarts::cuda
