// patch_mask's kernels: choose each image's masked patches, then one pass over the pixels.
// fastdarts/ops/patch_mask.py documents the computation; masks equal the CPU's bit for bit.
//
// Notation: N images of H x W pixels in 3 channels, P = rows * cols patches of side x side pixels.
#pragma once

#include "block.h"
#include "philox.h"

namespace fastdarts::cuda {

struct MaskArgs {
  const uint8_t* images;
  const int64_t* index;
  const int64_t* step;
  const bool* flip;
  const void* fill;
  bool* mask;
  void* x;
  int64_t seed, use, num_masked, N, H, W, side;
  float shift[3], scale[3];
};

// One block for each image: the num_masked smallest (random word, patch) pairs. The largest word among them is found
// digit by digit from the top, by counting the words that begin as it does; of patches with just this word the first
// ones are taken.
struct ChoosePatches {
  using Args = MaskArgs;
  static constexpr int THREADS = 256, ROUND = 3, AFTER = 1, DIGIT = 4, DIGITS = 1 << DIGIT;
  struct Shared {
    int count[DIGITS];
    uint32_t word;  // the digits found so far
    int64_t left;   // how many of the patches whose words begin so are masked
    bool all;       // that is every one of them
  };

  const Args& args;
  Shared& shared;
  int64_t image, patches;
  int thread;

  FASTDARTS_FN ChoosePatches(const Args& a, Shared& s, int block, int t)
      : args(a), shared(s), image(block), patches((a.H / a.side) * (a.W / a.side)), thread(t) {}
  FASTDARTS_FN int rounds() const { return 32 / DIGIT; }

  FASTDARTS_FN Words four(int64_t i) const {
    const Words counter = {static_cast<uint32_t>(i), static_cast<uint32_t>(args.index[image]),
                           static_cast<uint32_t>(*args.step), static_cast<uint32_t>(args.use)};
    return philox4x32(counter, static_cast<uint64_t>(args.seed));
  }

  // f(patch, its word), for this thread's patches.
  template <class F>
  FASTDARTS_FN void each(F f) const {
    for (int64_t i = thread; i * 4 < patches; i += THREADS) {
      const Words words = four(i);
      for (int lane = 0; lane < 4; ++lane) {
        if (i * 4 + lane < patches) f(i * 4 + lane, words[lane]);
      }
    }
  }

  template <int PHASE>
  FASTDARTS_FN void phase(int round) {
    const int low = 32 - DIGIT * (round + 1);  // the digit's place
    if constexpr (PHASE == 0) {
      if (thread < DIGITS) shared.count[thread] = 0;
      if (round == 0 && thread == 0) shared.word = 0, shared.left = args.num_masked;
    } else if constexpr (PHASE == 1) {
      const auto above = static_cast<uint32_t>(uint64_t{0xFFFFFFFF} << (low + DIGIT));
      each([&](int64_t, uint32_t word) {
        if ((word & above) == shared.word) add_count(shared.count[word >> low & (DIGITS - 1)], 1);
      });
    } else if constexpr (PHASE == 2) {
      if (thread == 0) {
        int64_t left = shared.left;
        uint32_t digit = 0;
        while (digit < DIGITS - 1 && left > shared.count[digit]) left -= shared.count[digit++];
        shared.word |= digit << low;
        shared.left = left;
        shared.all = left == shared.count[digit];
      }
    } else {
      each([&](int64_t patch, uint32_t word) {
        bool masked = args.num_masked > 0 && word < shared.word;
        if (word == shared.word) masked = shared.all || earlier(patch, word) < shared.left;
        args.mask[image * patches + patch] = masked;
      });
    }
  }

  // How many patches before this one have the same word.
  FASTDARTS_FN int64_t earlier(int64_t patch, uint32_t word) const {
    int64_t n = 0;
    for (int64_t i = 0; i * 4 < patch; ++i) {
      const Words words = four(i);
      for (int lane = 0; lane < 4; ++lane) n += i * 4 + lane < patch && words[lane] == word;
    }
    return n;
  }
};

// x: (pixel - shift) * scale, or the fill's colour; each thread writes 16 bytes of all images' numbers.
template <class T>
struct WritePixels {
  using Args = MaskArgs;
  static constexpr int THREADS = 256, ROUND = 1, AFTER = 0, LANES = 16 / static_cast<int>(sizeof(T));
  struct Shared {};

  const Args& args;
  int64_t first;

  FASTDARTS_FN WritePixels(const Args& a, Shared&, int block, int t)
      : args(a), first((int64_t{block} * THREADS + t) * LANES) {}
  FASTDARTS_FN int rounds() const { return 1; }
  static FASTDARTS_FN int64_t numbers(const Args& a) { return a.N * a.H * a.W * 3; }

  template <int PHASE>
  FASTDARTS_FN void phase(int) {
    const int64_t all = numbers(args);
    if (first >= all) return;
    auto* x = static_cast<T*>(args.x) + first;
    const auto row = static_cast<uint32_t>(args.W * 3), place = static_cast<uint32_t>(first % row);
    if (place + LANES <= row && first + LANES <= all) {
      Vector<T, LANES> out;
      line(first / row, place, out.lane, LANES);
      store<T, LANES>(x, out);
    } else {
      for (int64_t i = first; i < least(first + LANES, all); ++i) {
        line(i / row, static_cast<uint32_t>(i % row), x + (i - first), 1);
      }
    }
  }

  // n numbers of a line of all images' H * N, from `place` on; at most LANES.
  FASTDARTS_FN void line(int64_t i_line, uint32_t place, T* out, int n) const {
    const auto H = static_cast<uint32_t>(args.H), W = static_cast<uint32_t>(args.W),
               side = static_cast<uint32_t>(args.side);
    const int64_t image = i_line / H;
    const auto i_row = static_cast<uint32_t>(i_line - image * H);
    const uint32_t cols = W / side;
    const bool* mask = args.mask + (image * (H / side) + i_row / side) * cols;
    const uint8_t* pixels = args.images + i_line * W * 3;
    const bool flip = args.flip[image];
    const auto* fill = static_cast<const T*>(args.fill);
    uint32_t column = place / 3, colour = place - column * 3, patch = column / side, inside = column - patch * side;
    bool masked = mask[patch];
#pragma unroll
    for (int i = 0; i < LANES; ++i) {
      if (i >= n) break;
      const uint8_t pixel = pixels[(flip ? W - 1 - column : column) * 3 + colour];
      if (masked) {
        out[i] = fill[colour];
      } else {
        const float shift = colour == 0 ? args.shift[0] : colour == 1 ? args.shift[1] : args.shift[2];
        const float scale = colour == 0 ? args.scale[0] : colour == 1 ? args.scale[1] : args.scale[2];
        assign(out[i], (static_cast<float>(pixel) - shift) * scale);
      }
      if (++colour == 3) {
        colour = 0, ++column;
        if (++inside == side) inside = 0, ++patch;
        if (i + 1 < n) masked = mask[patch];
      }
    }
  }
};

// run.template operator()<Kernel>(args, blocks) for both kernels.
template <class Run>
void patch_mask(const MaskArgs& args, Dtype dtype, Run run) {
  const auto write = [&]<class T>(T) {
    using Kernel = WritePixels<T>;
    const int64_t numbers = args.N * args.H * args.W * 3, per = Kernel::THREADS * Kernel::LANES;
    run.template operator()<Kernel>(args, (numbers + per - 1) / per);
  };
  run.template operator()<ChoosePatches>(args, args.N);
  if (dtype == Dtype::float32) write(float{});
  if (dtype == Dtype::float16) write(Half{});
  if (dtype == Dtype::bfloat16) write(Bfloat16{});
}

}  // namespace fastdarts::cuda
