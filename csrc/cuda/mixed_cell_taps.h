// Gradients of mixed_cell's depthwise kernels: sums over pixels of dz times each tap's input. Launches and notation:
// mixed_cell.h.
#pragma once

#include "mixed_cell_depthwise.h"

namespace fastdarts::cuda {

// A part of the gradient of all taps of a unit. A block: CB channels of a part. (The Triton launch has a program for
// each of five rows of taps; this one takes all rows in one.)
template <class T, bool IS_SECOND>
struct TapGradient {
  using Args = CellArgs;
  using Convolution = Unit<T, IS_SECOND>;
  static constexpr int CB = Convolution::CB, THREADS = Convolution::THREADS, ROUND = 2, AFTER = 2;
  static constexpr int ROWS = 5;  // programs of the plan for each part
  union Shared {
    alignas(16) float halo[Convolution::HALO];
    float sums[TAPS * 2][THREADS];
  };

  const Args& args;
  Shared& shared;
  int thread;
  int chunks, part;
  Convolution unit;
  Tiles tiles;
  Strip<CB> strip;
  Channels channels;
  const T* p_dz;
  Two sums[TAPS] = {};

  FASTDARTS_FN TapGradient(const Args& a, Shared& s, int block, int t)
      : args(a),
        shared(s),
        thread(t),
        chunks(static_cast<int>(up(a.CQ, CB))),
        part(block / chunks % static_cast<int>(a.parts)),
        unit(a, block / chunks / static_cast<int>(a.parts)),
        tiles(part * a.per, least(part * a.per + a.per, a.m), a.Ho, a.Wo),
        strip(t, tiles.columns),
        channels(block % chunks * CB + strip.channel, a.CQ, nullptr, a.CQ),
        p_dz(at_block<T>(a.p_work, unit.row[UNIT_DZ])) {}
  static int64_t blocks(const Args& a, int64_t programs) { return programs / ROWS * ((a.CQ + CB - 1) / CB); }
  FASTDARTS_FN int rounds() const { return tiles.count(); }

  template <int PHASE>
  FASTDARTS_FN void phase(int round) {
    if constexpr (PHASE == 0) {
      unit.load(shared.halo, args, tiles, tiles.at(round), channels.first - strip.channel, thread);
    } else if constexpr (PHASE == 1) {
      const Tile tile = tiles.at(round);
      Two dz[STRIP];
#pragma unroll
      for (int i = 0; i < STRIP; ++i) {
        const int64_t pixel = tiles.pixel(tile, strip.row + i, strip.column);
        dz[i] = pixel < 0 ? Two{{0.0F, 0.0F}} : read(p_dz + pixel * args.CQ, channels);
      }
      unit.with_sizes([&]<int K, int D, int S>() {
        Convolution::template meet<K, D, S, K>(shared.halo, tiles, strip, [&](int i, int j, int out, const Two& x) {
          sums[i * K + j].lane[0] += dz[out].lane[0] * x.lane[0];
          sums[i * K + j].lane[1] += dz[out].lane[1] * x.lane[1];
        });
      });
    } else if constexpr (PHASE == 2) {
#pragma unroll
      for (int i = 0; i < TAPS; ++i) {
        shared.sums[2 * i][thread] = sums[i].lane[0];
        shared.sums[2 * i + 1][thread] = sums[i].lane[1];
      }
    } else {
      const int taps = unit.kernel * unit.kernel;
      const int64_t first = channels.first - strip.channel;
      float* out = static_cast<float*>(args.p_parts) + part * args.numbers + unit.row[UNIT_DEPTHWISE];
      for (int i = thread; i < taps * CB; i += THREADS) {
        const int c = i / taps, tap = i - c * taps;
        if (first + c >= args.CQ) continue;
        double sum = 0;
        for (int share = c / 2; share < THREADS; share += CB / 2)
          sum += static_cast<double>(shared.sums[2 * tap + c % 2][share]);
        out[(first + c) * taps + tap] = static_cast<float>(sum);
      }
    }
  }
};

// run.template operator()<Kernel>(args, blocks) for a launch of the plan.
template <class Run>
void tap_gradient(const CellArgs& args, Dtype dtype, int64_t programs, Run run) {
  with_dtype(dtype, [&]<class T>(T) {
    if (args.SECOND) {
      run.template operator()<TapGradient<T, true>>(args, TapGradient<T, true>::blocks(args, programs));
    } else {
      run.template operator()<TapGradient<T, false>>(args, TapGradient<T, false>::blocks(args, programs));
    }
  });
}

}  // namespace fastdarts::cuda
