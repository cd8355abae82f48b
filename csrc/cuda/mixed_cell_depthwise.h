// Shared by the kernels of mixed_cell's depthwise convolutions: the rectified input of a unit in shared memory, and
// the numbers that each tap reads. Launches and notation: mixed_cell.h.
#pragma once

#include "mixed_cell.h"

namespace fastdarts::cuda {

constexpr int TAPS = 25;  // of the largest kernel

// A depthwise convolution of the table, read CB channels at a time; IS_SECOND: of relu(xhat of a first half), else of
// relu(x).
template <class T, bool IS_SECOND>
struct Unit {
  static constexpr int CB = 8, THREADS = Strip<CB>::THREADS, REACH = IS_SECOND ? 2 : 4;
  static constexpr int HALO = halo_pixels(IS_SECOND ? 1 : 2, REACH) * CB;

  const int64_t* row;
  Source<T> x;
  int kernel, dilation, reach;

  explicit FASTDARTS_FN Unit(const int64_t* p_row) : row(p_row), x{} {
    kernel = static_cast<int>(row[UNIT_KERNEL]), dilation = static_cast<int>(row[UNIT_DILATION]);
    reach = dilation * (kernel / 2);
    x.stride = static_cast<int>(row[UNIT_STRIDE]);
  }
  FASTDARTS_FN Unit(const CellArgs& a, int64_t i_row)
      : Unit(table_of(a) + a.o_units + table_of(a)[a.o_listed + i_row] * UNIT) {
    if constexpr (IS_SECOND) {
      x = {
          at_block<T>(a.p_saved, row[UNIT_BEFORE_Y]), a.CQ, nullptr, static_cast<int>(a.Ho), static_cast<int>(a.Wo), 1};
    } else {
      x = state_of<T>(a, row[UNIT_SOURCE], row[UNIT_STATE], row[UNIT_EDGE], row[UNIT_STRIDE]);
    }
  }

  // Channels from `first` on of what a tile reads.
  FASTDARTS_FN void load(float* halo, const CellArgs& a, const Tiles& tiles, const Tile& tile, int64_t first,
                         int thread) const {
    if constexpr (IS_SECOND) {
      constexpr int LANES = 16 / static_cast<int>(sizeof(T)) < CB ? 16 / static_cast<int>(sizeof(T)) : CB;
      Normal xhat[LANES];
      const int64_t group = first + halo_group<CB, T>(thread);
#pragma unroll
      for (int lane = 0; lane < LANES; ++lane) {
        xhat[lane] =
            group + lane < a.CQ ? three(a.p_norms, row[UNIT_BEFORE_NORM], group + lane, a.CQ) : Normal{0, 0, 0};
      }
      load_halo<CB, THREADS>(halo, x, tiles, tile, reach, first, a.CQ, thread,
                             [&xhat](float y, int lane) { return rectified(xhat[lane](y)); });
    } else {
      load_halo<CB, THREADS>(halo, x, tiles, tile, reach, first, a.CQ, thread,
                             [](float v, int) { return rectified(v); });
    }
  }

  // f(row of the tap, its column, row in the strip, the two numbers that meet there), from a compile-time kernel size,
  // dilation and stride; each number is read once. UNROLL: how many columns are taken apart at compile time, K where f
  // keeps what belongs to a tap in registers.
  template <int K, int D, int S, int UNROLL, class F>
  static FASTDARTS_FN void meet(const float* halo, const Tiles& tiles, const Strip<CB>& strip, F f) {
    const int pitch = ((tiles.columns - 1) * S + 1 + D * (K - 1)) * CB;
    const float* corner = halo + strip.row * S * pitch + strip.column * S * CB + strip.channel;
#pragma unroll UNROLL
    for (int i_column = 0; i_column < K; ++i_column) {
#pragma unroll
      for (int i = 0; i <= (STRIP - 1) * S + (K - 1) * D; ++i) {
        const Two v = two_at(corner + i * pitch + i_column * D * CB);
#pragma unroll
        for (int out = 0; out < STRIP; ++out) {
          const int gap = i - out * S;
          if (gap >= 0 && gap % D == 0 && gap / D < K) f(gap / D, i_column, out, v);
        }
      }
    }
  }

  // f.template operator()<K, D, S>() for this unit.
  template <class F>
  FASTDARTS_FN void with_sizes(F f) const {
    if constexpr (IS_SECOND) {
      kernel == 3 ? f.template operator()<3, 1, 1>() : f.template operator()<5, 1, 1>();
    } else if (x.stride == 1) {
      if (dilation == 1) {
        kernel == 3 ? f.template operator()<3, 1, 1>() : f.template operator()<5, 1, 1>();
      } else {
        kernel == 3 ? f.template operator()<3, 2, 1>() : f.template operator()<5, 2, 1>();
      }
    } else if (dilation == 1) {
      kernel == 3 ? f.template operator()<3, 1, 2>() : f.template operator()<5, 1, 2>();
    } else {
      kernel == 3 ? f.template operator()<3, 2, 2>() : f.template operator()<5, 2, 2>();
    }
  }
};

}  // namespace fastdarts::cuda
