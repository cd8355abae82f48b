// uint8 NHWC -> normalised, mirrored, masked; one pass. fastdarts/ops/patch_mask.py documents the arguments and has
// the definition, which this must equal bit for bit.
//
// Notation: N images of H x W pixels, P = rows * cols patches of p x p pixels, T the dtype of the output.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "../rows.h"
#include "isa.h"
#include "normalise.h"
#include "philox.h"
#include "tensors.h"

namespace fastdarts {
namespace {

struct Image {
  int64_t height, width, patch, rows, cols;
};

// Numbers of a row, colour c of pixel w at 3 * w + c.
template <typename T>
struct Row {
  std::vector<T> shift, scale, fill;

  Row(int64_t width, const T* colour, at::ArrayRef<double> mean, at::ArrayRef<double> std)
      : shift(3 * width), scale(3 * width), fill(3 * width) {
    for (int64_t i = 0; i < 3 * width; ++i) {
      shift[i] = static_cast<T>(255.0 * mean[i % 3]);
      scale[i] = static_cast<T>(1.0 / (255.0 * std[i % 3]));
      fill[i] = colour[i % 3];
    }
  }
};

// Marks the num_masked smallest of the image's (random word, patch) pairs; `pairs` is scratch of 4 * ceil(P / 4).
void choose_patches(Words counter, uint64_t seed, int64_t num_masked, std::vector<uint64_t>& pairs, bool* mask,
                    int64_t patches) {
  for (uint64_t i = 0; i < pairs.size(); i += 4) {
    counter[0] = static_cast<uint32_t>(i / 4);
    const Words words = philox4x32(counter, seed);
    for (uint64_t lane = 0; lane < 4; ++lane) pairs[i + lane] = uint64_t{words[lane]} << 32 | (i + lane);
  }
  std::nth_element(pairs.begin(), pairs.begin() + num_masked, pairs.begin() + patches);
  std::fill_n(mask, patches, false);
  for (int64_t i = 0; i < num_masked; ++i) mask[static_cast<uint32_t>(pairs[i])] = true;
}

// Four bytes at once, if inside the row: the next pixel overwrites the fourth.
void mirror(const uint8_t* in, int64_t width, uint8_t* out) {
  for (int64_t w = 0; w < width; ++w) {
    const bool inside = 0 < w && w < width - 1;
    std::memcpy(out + 3 * w, in + 3 * (width - 1 - w), inside ? 4 : 3);
  }
}

// `line` is scratch of 3 * W.
template <typename T>
void write_image(const Image& s, const uint8_t* in, const bool* mask, bool flip, const Row<T>& row,
                 Normalise<T> normalise, std::vector<uint8_t>& line, T* out) {
  const int64_t numbers = 3 * s.width, span = 3 * s.patch;
  for (int64_t h = 0; h < s.height; ++h, in += numbers, out += numbers) {
    if (flip) mirror(in, s.width, line.data());
    normalise(flip ? line.data() : in, row.shift.data(), row.scale.data(), out, numbers);
    const bool* mask_row = mask + h / s.patch * s.cols;
    for (int64_t col = 0; col < s.cols; ++col) {
      if (mask_row[col]) std::copy_n(row.fill.data(), span, out + col * span);
    }
  }
}

template <typename T>
void write_images(const Image& s, const at::Tensor& images, const at::Tensor& index, const at::Tensor& step,
                  const at::Tensor& flip, const at::Tensor& fill, int64_t seed, int64_t stream, int64_t num_masked,
                  at::ArrayRef<double> mean, at::ArrayRef<double> std, Normalise<T> normalise, at::Tensor& x,
                  at::Tensor& mask) {
  const auto* in = images.const_data_ptr<uint8_t>();
  const auto* index_of = index.const_data_ptr<int64_t>();
  const auto* flip_of = flip.const_data_ptr<bool>();
  const auto time = static_cast<uint32_t>(*step.const_data_ptr<int64_t>());
  const auto use = static_cast<uint32_t>(PURPOSE_MASK + 256 * stream);
  auto* out = x.mutable_data_ptr<T>();
  auto* out_mask = mask.mutable_data_ptr<bool>();
  const Row<T> row(s.width, fill.const_data_ptr<T>(), mean, std);
  const int64_t patches = s.rows * s.cols, numbers = 3 * s.height * s.width;
  at::parallel_for(0, images.size(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> pairs((patches + 3) / 4 * 4);
    std::vector<uint8_t> line(3 * s.width);
    for (int64_t n = begin; n < end; ++n) {
      bool* image_mask = out_mask + n * patches;
      choose_patches({0, static_cast<uint32_t>(index_of[n]), time, use}, static_cast<uint64_t>(seed), num_masked, pairs,
                     image_mask, patches);
      write_image(s, in + n * numbers, image_mask, flip_of[n], row, normalise, line, out + n * numbers);
    }
  });
}

std::tuple<at::Tensor, at::Tensor> patch_mask(const at::Tensor& images, const at::Tensor& index, const at::Tensor& step,
                                              const at::Tensor& flip, const at::Tensor& fill, int64_t seed,
                                              int64_t stream, int64_t patch_size, int64_t num_masked,
                                              at::ArrayRef<double> mean, at::ArrayRef<double> std) {
  TORCH_CHECK(images.dim() == 4 && images.size(3) == 3 && mean.size() == 3 && std.size() == 3 && fill.numel() == 3,
              "patch_mask: three channels are needed, images NHWC");
  const int64_t n = images.size(0), height = images.size(1), width = images.size(2);
  TORCH_CHECK(index.numel() == n && flip.numel() == n && step.numel() == 1, "patch_mask: one index and flip an image");
  TORCH_CHECK(patch_size > 0 && height % patch_size == 0 && width % patch_size == 0,
              "patch_mask: the patch must divide the image");
  const Image s{height, width, patch_size, height / patch_size, width / patch_size};
  TORCH_CHECK(0 <= num_masked && num_masked <= s.rows * s.cols, "patch_mask: num_masked must be within 0..P");
  auto x = channels_last(n, 3, height, width, fill.options());
  auto mask = at::empty({n, s.rows, s.cols}, images.options().dtype(at::kBool));
  const auto write = [&](auto normalise) {
    write_images(s, images.contiguous(), index.contiguous(), step, flip.contiguous(), fill.contiguous(), seed, stream,
                 num_masked, mean, std, normalise, x, mask);
  };
  static constexpr const NormaliseKernels* tables[] = FASTDARTS_TABLES(normalise_kernels);
  fill.scalar_type() == at::kDouble ? write(kernels(tables).f64) : write(kernels(tables).f32);
  return {x, mask};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) { m.impl("patch_mask", &patch_mask); }

}  // namespace fastdarts
