// uint8 NHWC -> normalised, mirrored, masked; one pass. fastdarts/ops/patch_mask.py says what each argument means and
// holds the definition that this must equal bit for bit.
//
// Letters: N images of H x W pixels, P = rows * cols patches of p x p pixels, T the dtype of the output.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "philox.h"

namespace fastdarts {
namespace {

constexpr uint32_t PURPOSE_MASK = 4;  // philox.Purpose.MASK

struct Image {
  int64_t height, width, patch, rows, cols;
};

// One row of one patch, 3 * p numbers: channel c of pixel i at 3 * i + c.
template <typename T>
struct PatchRow {
  std::vector<T> shift, scale, fill;

  PatchRow(int64_t patch, const T* colour, at::ArrayRef<double> mean, at::ArrayRef<double> std)
      : shift(3 * patch), scale(3 * patch), fill(3 * patch) {
    for (int64_t i = 0; i < 3 * patch; ++i) {
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

template <typename T>
void normalise(const uint8_t* __restrict in, const T* __restrict shift, const T* __restrict scale, T* __restrict out,
               int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = (static_cast<T>(in[i]) - shift[i]) * scale[i];
}

// `line` is scratch of 3 * W.
template <typename T>
void write_image(const Image& s, const uint8_t* in, const bool* mask, bool flip, const PatchRow<T>& constants,
                 std::vector<uint8_t>& line, T* out) {
  const int64_t span = 3 * s.patch;
  for (int64_t h = 0; h < s.height; ++h, in += 3 * s.width) {
    if (flip) {
      for (int64_t w = 0; w < s.width; ++w) std::copy_n(in + 3 * (s.width - 1 - w), 3, &line[3 * w]);
    }
    const uint8_t* pixels = flip ? line.data() : in;
    const bool* mask_row = mask + h / s.patch * s.cols;
    for (int64_t col = 0; col < s.cols; ++col, pixels += span, out += span) {
      if (mask_row[col]) {
        std::copy_n(constants.fill.data(), span, out);
      } else {
        normalise(pixels, constants.shift.data(), constants.scale.data(), out, span);
      }
    }
  }
}

template <typename T>
void write_images(const Image& s, const at::Tensor& images, const at::Tensor& index, const at::Tensor& step,
                  const at::Tensor& flip, const at::Tensor& fill, int64_t seed, int64_t stream, int64_t num_masked,
                  at::ArrayRef<double> mean, at::ArrayRef<double> std, at::Tensor& x, at::Tensor& mask) {
  const auto* in = images.const_data_ptr<uint8_t>();
  const auto* index_of = index.const_data_ptr<int64_t>();
  const auto* flip_of = flip.const_data_ptr<bool>();
  const auto time = static_cast<uint32_t>(*step.const_data_ptr<int64_t>());
  const auto use = static_cast<uint32_t>(PURPOSE_MASK + 256 * stream);
  auto* out = x.mutable_data_ptr<T>();
  auto* out_mask = mask.mutable_data_ptr<bool>();
  const PatchRow<T> constants(s.patch, fill.const_data_ptr<T>(), mean, std);
  const int64_t patches = s.rows * s.cols, numbers = 3 * s.height * s.width;
  at::parallel_for(0, images.size(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> pairs((patches + 3) / 4 * 4);
    std::vector<uint8_t> line(3 * s.width);
    for (int64_t n = begin; n < end; ++n) {
      bool* image_mask = out_mask + n * patches;
      choose_patches({0, static_cast<uint32_t>(index_of[n]), time, use}, static_cast<uint64_t>(seed), num_masked, pairs,
                     image_mask, patches);
      write_image(s, in + n * numbers, image_mask, flip_of[n], constants, line, out + n * numbers);
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
  auto x = at::empty({n, height, width, 3}, fill.options()).permute({0, 3, 1, 2});
  auto mask = at::empty({n, s.rows, s.cols}, images.options().dtype(at::kBool));
  const auto write = fill.scalar_type() == at::kDouble ? write_images<double> : write_images<float>;
  write(s, images.contiguous(), index.contiguous(), step, flip.contiguous(), fill.contiguous(), seed, stream,
        num_masked, mean, std, x, mask);
  return {x, mask};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) { m.impl("patch_mask", &patch_mask); }

}  // namespace fastdarts
