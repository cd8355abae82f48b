// Half of a separable convolution of mixed_cell: depthwise from a rectified tile, the 1x1 product, the sums of its BN.
// Launches and notation: mixed_cell.h.
#pragma once

#include "mixed_cell_depthwise.h"

namespace fastdarts::cuda {

// y = pointwise(depthwise(relu(x))). A block: a part; tile by tile, and CB input channels after the other, the
// depthwise output is formed in shared memory and its product added to each thread's PIXELS x OUT outputs. OUTS >= CQ,
// a power of two.
template <class T, bool IS_SECOND, int OUTS>
struct Separable {
  using Args = CellArgs;
  using Convolution = Unit<T, IS_SECOND>;
  static constexpr int CB = Convolution::CB, THREADS = Convolution::THREADS, ROUND = 3, AFTER = 2;
  static constexpr int OUT = OUTS == 64 ? 8 : 4, PIXELS = OUTS / OUT, GROUPS = OUTS / OUT, SHARES = TILE / PIXELS;
  static_assert(GROUPS * SHARES == THREADS && PIXELS % 4 == 0);
  static constexpr int PITCH = TILE + 4, OUT_PITCH = OUTS + 4;  // without bank conflicts, and aligned to 16 bytes
  struct Working {
    alignas(16) float halo[Convolution::HALO];
    alignas(16) float z[CB][PITCH];
    alignas(16) float matrix[CB][OUT_PITCH];
    alignas(16) float taps[TAPS][CB];
  };
  union Shared {
    Working working;
    Moments moments[OUTS][SHARES];
  };

  const Args& args;
  Shared& shared;
  int thread;
  int chunks, part;
  Convolution unit;
  Tiles tiles;
  int first_out, first_pixel;  // of this thread's products
  float sums[PIXELS][OUT] = {};
  Deviations<OUT> deviations;

  FASTDARTS_FN Separable(const Args& a, Shared& s, int block, int t)
      : args(a),
        shared(s),
        thread(t),
        chunks(static_cast<int>(up(a.CQ, CB))),
        part(block % static_cast<int>(a.parts)),
        unit(a, block / static_cast<int>(a.parts)),
        tiles(part * a.per, least(part * a.per + a.per, a.m), a.Ho, a.Wo),
        first_out(t % GROUPS * OUT),
        first_pixel(t / GROUPS * PIXELS) {}
  FASTDARTS_FN int rounds() const { return tiles.count() * chunks; }

  template <int PHASE>
  FASTDARTS_FN void phase(int round) {
    const int i_tile = round / chunks, chunk = round - i_tile * chunks;
    if constexpr (PHASE == 0) {
      unit.load(shared.working.halo, args, tiles, tiles.at(i_tile), chunk * CB, thread);
      load_weights(chunk * CB);
    } else if constexpr (PHASE == 1) {
      depthwise();
    } else if constexpr (PHASE == 2) {
      multiply();
      if (chunk == chunks - 1) finish(tiles.at(i_tile));
    } else if constexpr (PHASE == 3) {
#pragma unroll
      for (int k = 0; k < OUT; ++k) {
        shared.moments[first_out + k][first_pixel / PIXELS] = {deviations.count, deviations.pivot[k],
                                                               deviations.total[k], deviations.squares[k]};
      }
    } else {
      if (!args.BATCH || thread >= args.CQ) return;
      const Moments* of = shared.moments[thread];
      store_sums(args, unit.row[UNIT_NORM], part, thread, SHARES, [of](int i) { return of[i]; });
    }
  }

  // The taps and the columns of the matrix that belong to channels from `first` on; 0 for those that are not there.
  FASTDARTS_FN void load_weights(int64_t first) const {
    const auto* weights = static_cast<const T*>(args.p_weights);
    const int taps = unit.kernel * unit.kernel;
    const T* p_taps = weights + unit.row[UNIT_DEPTHWISE];
    for (int i = thread; i < taps * CB; i += THREADS) {
      const int c = i / taps, tap = i - c * taps;
      shared.working.taps[tap][c] = first + c < args.CQ ? to_float(p_taps[(first + c) * taps + tap]) : 0.0F;
    }
    const T* p_matrix = weights + unit.row[UNIT_POINTWISE];
    for (int i = thread; i < OUTS * CB; i += THREADS) {
      const int64_t out = i / CB, c = i % CB;
      const bool is_there = out < args.CQ && first + c < args.CQ;
      shared.working.matrix[c][out] = is_there ? to_float(p_matrix[out * args.CQ + first + c]) : 0.0F;
    }
  }

  FASTDARTS_FN void depthwise() const {
    const Strip<CB> strip(thread, tiles.columns);
    Two z[STRIP] = {};
    unit.with_sizes([&]<int K, int D, int S>() {
      Convolution::template meet<K, D, S, 1>(shared.working.halo, tiles, strip,
                                             [&](int i, int j, int out, const Two& x) {
                                               const Two tap = two_at(&shared.working.taps[i * K + j][strip.channel]);
                                               z[out].lane[0] += x.lane[0] * tap.lane[0];
                                               z[out].lane[1] += x.lane[1] * tap.lane[1];
                                             });
    });
#pragma unroll
    for (int i = 0; i < STRIP; ++i) {
      const int pixel = (strip.row + i) * tiles.columns + strip.column;
      shared.working.z[strip.channel][pixel] = z[i].lane[0];
      shared.working.z[strip.channel + 1][pixel] = z[i].lane[1];
    }
  }

  FASTDARTS_FN void multiply() {
#pragma unroll
    for (int c = 0; c < CB; ++c) {
      float z[PIXELS], row[OUT];
#pragma unroll
      for (int i = 0; i < PIXELS; i += 4) four_at(&shared.working.z[c][first_pixel + i], z + i);
#pragma unroll
      for (int k = 0; k < OUT; k += 4) four_at(&shared.working.matrix[c][first_out + k], row + k);
#pragma unroll
      for (int i = 0; i < PIXELS; ++i) {
#pragma unroll
        for (int k = 0; k < OUT; ++k) sums[i][k] += z[i] * row[k];
      }
    }
  }

  // Writes the sums of a tile, counts them for the BN, and begins anew.
  FASTDARTS_FN void finish(const Tile& tile) {
    T* p_y = at_block<T>(args.p_saved, unit.row[UNIT_Y]);
    const int row = first_pixel / tiles.columns, column = first_pixel % tiles.columns;
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
      const int64_t pixel = tiles.pixel(tile, row, column + i);
      Vector<T, OUT> y;
      float rounded[OUT];
#pragma unroll
      for (int k = 0; k < OUT; ++k) {
        assign(y.lane[k], sums[i][k]);
        rounded[k] = to_float(y.lane[k]);
        sums[i][k] = 0.0F;
      }
      if (pixel < 0) continue;
      deviations.add(rounded);
      write_pixel(p_y + pixel * args.CQ + first_out, y);
    }
  }

  FASTDARTS_FN void write_pixel(T* p_y, const Vector<T, OUT>& y) const {
    constexpr int LANES = 16 / static_cast<int>(sizeof(T)) < OUT ? 16 / static_cast<int>(sizeof(T)) : OUT;
    const bool is_wide = args.CQ % LANES == 0;
#pragma unroll
    for (int k = 0; k < OUT; k += LANES) {
      if (is_wide && first_out + k < args.CQ) {
        Vector<T, LANES> piece;
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane) piece.lane[lane] = y.lane[k + lane];
        store(p_y + k, piece);
      } else {
#pragma unroll
        for (int lane = 0; lane < LANES; ++lane) {
          if (first_out + k + lane < args.CQ) p_y[k + lane] = y.lane[k + lane];
        }
      }
    }
  }
};

// run.template operator()<Kernel>(args, blocks) for a launch of the plan; CQ is at most CUDA_WIDEST.
template <class Run>
void separable(const CellArgs& args, Dtype dtype, int64_t programs, Run run) {
  with_dtype(dtype, [&]<class T>(T) {
    const auto with_outs = [&]<int OUTS>() {
      args.SECOND ? run.template operator()<Separable<T, true, OUTS>>(args, programs)
                  : run.template operator()<Separable<T, false, OUTS>>(args, programs);
    };
    if (args.CQ <= 16) {
      with_outs.template operator()<16>();
    } else if (args.CQ <= 32) {
      with_outs.template operator()<32>();
    } else {
      with_outs.template operator()<64>();
    }
  });
}

}  // namespace fastdarts::cuda
