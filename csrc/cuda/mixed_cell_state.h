// The gradient of a state of mixed_cell, if all edges that leave it keep its size. Launches and notation:
// mixed_cell.h.
#pragma once

#include "mixed_cell_depthwise.h"

namespace fastdarts::cuda {

// The output's share, and what each edge that leaves the state gives back: of its depthwise convolutions and pools, of
// skip, and, for channels that pass by, the node's gradient itself. Without random channels and dense convolutions, at
// stride 1. A block: CB channels of one tile; a round for each depthwise convolution and each pool, then all that needs
// no neighbours.
template <class T>
struct StateGradient {
  using Args = CellArgs;
  static constexpr int CB = 8, THREADS = Strip<CB>::THREADS, ROUND = 2, AFTER = 1;
  static constexpr int HALO = halo_pixels(1, 4) * CB, POOL_HALO = halo_pixels(1, 1) * CB;
  struct Convolution {
    alignas(16) float dz[HALO];
    alignas(16) float taps[TAPS][CB];
  };
  struct Pools {
    alignas(16) float dmax[POOL_HALO];
    alignas(16) float place[POOL_HALO];
    alignas(16) float davg[POOL_HALO];
  };
  union Shared {
    Convolution convolution;
    Pools pools;
  };

  const Args& args;
  Shared& shared;
  int thread;
  int chunks, groups, group, first;  // channels: those of group 0 pass through candidates
  const int64_t* row;
  Tiles tiles;
  Tile tile;
  Strip<CB> strip;
  int64_t leaving = 0, unit = 0;  // what the next round does: a unit of this leaving edge, past its last one a pool
  Two behind_relu[STRIP] = {}, total[STRIP] = {};

  FASTDARTS_FN StateGradient(const Args& a, Shared& s, int block, int t)
      : args(a),
        shared(s),
        thread(t),
        chunks(static_cast<int>(up(a.CQ, CB))),
        groups(static_cast<int>(a.C / a.CQ)),
        group(block / chunks % groups),
        first(block % chunks * CB),
        tiles(0, a.m, a.Ho, a.Wo),
        tile(tiles.at(block / chunks / groups % tiles.count())),
        strip(t, tiles.columns) {
    const int i_row = block / chunks / groups / tiles.count();
    row = table_of(a) + a.o_states + table_of(a)[a.o_listed + i_row] * STATE;
    leaving = row[STATE_LEAVING] - 1;
    next_edge();
  }
  static int64_t blocks(const Args& a, int64_t programs) {
    const int64_t columns = a.Wo <= 8 ? 8 : 16, rows = TILE / columns, chunks = (a.CQ + CB - 1) / CB;
    const int64_t tiles = (a.Wo + columns - 1) / columns * ((a.Ho + rows - 1) / rows) * (a.m / (a.Ho * a.Wo));
    return programs / a.parts / a.TILES * tiles * chunks * (a.C / a.CQ);
  }

  FASTDARTS_FN const int64_t* edge() const { return table_of(args) + args.o_edges + table_of(args)[leaving] * EDGE; }
  FASTDARTS_FN bool is_through() const { return group == 0; }
  FASTDARTS_FN bool is_pool() const { return unit == edge()[EDGE_UNITS_END]; }

  // To the next edge that has anything to do, or past the last one.
  FASTDARTS_FN void next_edge() {
    while (++leaving < row[STATE_LEAVING_END]) {
      unit = edge()[EDGE_UNITS];
      if (!is_pool() || edge()[EDGE_POOL] >= 0) return;
    }
  }
  FASTDARTS_FN int rounds() const {
    int64_t n = 0;
    for (int64_t i = row[STATE_LEAVING]; is_through() && i < row[STATE_LEAVING_END]; ++i) {
      const int64_t* e = table_of(args) + args.o_edges + table_of(args)[i] * EDGE;
      n += e[EDGE_UNITS_END] - e[EDGE_UNITS] + (e[EDGE_POOL] >= 0);
    }
    return static_cast<int>(n);
  }

  template <int PHASE>
  FASTDARTS_FN void phase(int) {
    if constexpr (PHASE == 0) {
      is_pool() ? load_pool() : load_unit();
    } else if constexpr (PHASE == 1) {
      if (is_pool()) {
        add_pool();
        next_edge();
      } else {
        add_unit();
        ++unit;
        if (is_pool() && edge()[EDGE_POOL] < 0) next_edge();
      }
    } else {
      finish();
    }
  }

  FASTDARTS_FN void load_from(float* halo, int64_t offset, int reach) const {
    const Source<T> source{at_block<T>(args.p_work, offset), args.CQ, nullptr, tiles.height, tiles.width, 1};
    load_halo<CB, THREADS>(halo, source, tiles, tile, reach, first, args.CQ, thread, [](float v, int) { return v; });
  }

  FASTDARTS_FN void load_unit() const {
    const int64_t* p_unit = table_of(args) + args.o_units + unit * UNIT;
    const int taps = static_cast<int>(p_unit[UNIT_KERNEL] * p_unit[UNIT_KERNEL]);
    load_from(shared.convolution.dz, p_unit[UNIT_DZ],
              static_cast<int>(p_unit[UNIT_DILATION] * (p_unit[UNIT_KERNEL] / 2)));
    const T* p_taps = static_cast<const T*>(args.p_weights) + p_unit[UNIT_DEPTHWISE];
    for (int i = thread; i < taps * CB; i += THREADS) {
      const int c = i / taps, tap = i - c * taps;
      // turned over: what a pixel gets back comes from the other side
      shared.convolution.taps[taps - 1 - tap][c] =
          first + c < args.CQ ? to_float(p_taps[(first + c) * taps + tap]) : 0.0F;
    }
  }

  FASTDARTS_FN void add_unit() {
    const Unit<T, false> convolution(table_of(args) + args.o_units + unit * UNIT);
    convolution.with_sizes([&]<int K, int D, int S>() {
      if constexpr (S == 1) {
        Unit<T, false>::template meet<K, D, 1, 1>(
            shared.convolution.dz, tiles, strip, [&](int i, int j, int out, const Two& dz) {
              const Two tap = two_at(&shared.convolution.taps[i * K + j][strip.channel]);
              behind_relu[out].lane[0] += dz.lane[0] * tap.lane[0];
              behind_relu[out].lane[1] += dz.lane[1] * tap.lane[1];
            });
      }
    });
  }

  FASTDARTS_FN void load_pool() const {
    const int64_t* p_pool = table_of(args) + args.o_pools + edge()[EDGE_POOL] * POOL;
    load_from(shared.pools.dmax, p_pool[POOL_DMAX], 1);
    load_from(shared.pools.place, p_pool[POOL_PLACE], 1);
    load_from(shared.pools.davg, p_pool[POOL_DAVG], 1);
  }

  FASTDARTS_FN void add_pool() {
    const int width = tiles.columns + 2;
#pragma unroll
    for (int out = 0; out < STRIP; ++out) {
#pragma unroll
      for (int t = 0; t < 9; ++t) {
        // the pixel is number t of the window around the one it gets this from
        const int i = ((strip.row + out + 2 - t / 3) * width + strip.column + 2 - t % 3) * CB + strip.channel;
        const Two dmax = two_at(shared.pools.dmax + i), place = two_at(shared.pools.place + i);
        const Two davg = two_at(shared.pools.davg + i);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          total[out].lane[k] += davg.lane[k] + (place.lane[k] == static_cast<float>(t) ? dmax.lane[k] : 0.0F);
        }
      }
    }
  }

  FASTDARTS_FN void finish() {
    const Channels inside(first + strip.channel, args.CQ, nullptr, args.CQ);  // of the group
    if (!inside.n) return;
    const Channels own = inside.shifted(group * args.CQ, args.C);
    Channels place = own;
    if (row[STATE_NODE] >= 0 && groups > 1) {
      place.is_wide = false;
      for (int k = 0; k < 2; ++k) place.place[k] = own.place[k] % groups * args.CQ + own.place[k] / groups;
    }
    const auto x = state_of<T>(args, row[STATE_SOURCE], row[STATE_STATE], 0, 1);
    const int64_t source = row[STATE_SOURCE];
    const bool has_edges = row[STATE_LEAVING] < row[STATE_LEAVING_END];  // a node without readers is not saved
    void* p_dx = source == 0   ? args.p_grad_inputs0
                 : source == 1 ? args.p_grad_inputs1
                 : source == 2 ? args.p_grad_inputs2
                 : source == 3 ? args.p_grad_inputs3
                               : at_block<T>(args.p_work, row[STATE_GRAD]);
#pragma unroll
    for (int i = 0; i < STRIP; ++i) {
      const int64_t pixel = tiles.pixel(tile, strip.row + i, strip.column);
      if (pixel < 0) continue;
      Two sum = total[i];
      if (row[STATE_NODE] >= 0) {
        const T* p_grad = static_cast<const T*>(args.p_grad) + (pixel * args.NODES + row[STATE_NODE]) * args.C;
        add(sum, 1.0F, read(p_grad, own));
      }
      for (int64_t l = row[STATE_LEAVING]; l < row[STATE_LEAVING_END]; ++l) add_straight(sum, l, pixel, own);
      if (has_edges) {
        const Two state = read(x.p + pixel * args.C, own);
        if (state.lane[0] > 0) sum.lane[0] += behind_relu[i].lane[0];
        if (state.lane[1] > 0) sum.lane[1] += behind_relu[i].lane[1];
      }
      write(static_cast<T*>(p_dx) + pixel * args.C, place, sum);
    }
  }

  // What an edge gives back without a stencil: through skip, or for channels that pass by.
  FASTDARTS_FN void add_straight(Two& to, int64_t i_leaving, int64_t pixel, const Channels& own) const {
    const int64_t i_edge = table_of(args)[i_leaving];
    const int64_t* e = table_of(args) + args.o_edges + i_edge * EDGE;
    if (is_through() && e[EDGE_SKIP] < 0) return;
    float weight = args.WEIGHTED ? mix_at<T>(args, args.p_edges, i_edge) : 1.0F;
    if (is_through()) weight *= mix_at<T>(args, args.p_ops, i_edge * args.columns + e[EDGE_SKIP]);
    add(to, weight, read(at_block<T>(args.p_work, e[EDGE_GRAD]) + pixel * args.C, own));
  }

  static FASTDARTS_FN void add(Two& to, float weight, const Two& value) {
    to.lane[0] += weight * value.lane[0], to.lane[1] += weight * value.lane[1];
  }
};

// run.template operator()<Kernel>(args, blocks) for a launch of the plan; of those that StateGradient takes.
template <class Run>
void state_gradient(const CellArgs& args, Dtype dtype, int64_t programs, Run run) {
  with_dtype(dtype, [&]<class T>(T) {
    run.template operator()<StateGradient<T>>(args, StateGradient<T>::blocks(args, programs));
  });
}

}  // namespace fastdarts::cuda
