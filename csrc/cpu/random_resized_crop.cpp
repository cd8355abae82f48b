// Boxes of cached uint8 images -> S x S pixels, in one pass. fastdarts/ops/random_resized_crop.py documents the
// arguments and has the definition, which this must equal bit for bit.
//
// Notation: N images of H x W pixels, boxes of h x w pixels in them, S pixels a side of the output.
#include "random_resized_crop.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <vector>

#include "../rows.h"
#include "isa.h"
#include "tensors.h"

namespace fastdarts {
namespace {

constexpr int64_t COLOURS = 3;

// The address of box n, after checking that it is inside its image, and the image inside the `bytes` of the buffer.
random_resized_crop::Box box_of(int64_t n, const uint8_t* pixels, int64_t bytes, int64_t start, const int64_t* size,
                                const int64_t* box) {
  const int64_t H = size[0], W = size[1], top = box[0], left = box[1], h = box[2], w = box[3];
  TORCH_CHECK_VALUE(1 <= H && H <= MOST_SIDE && 1 <= W && W <= MOST_SIDE, "random_resized_crop: image ", n, " is ", H,
                    " x ", W, " pixels, a side must be 1..", MOST_SIDE);
  TORCH_CHECK_VALUE(0 <= start && start <= bytes - COLOURS * H * W, "random_resized_crop: image ", n, " of ", H, " x ",
                    W, " pixels at ", start, " is not inside the buffer of ", bytes, " bytes");
  TORCH_CHECK_VALUE(1 <= h && h <= H && 0 <= top && top <= H - h && 1 <= w && w <= W && 0 <= left && left <= W - w,
                    "random_resized_crop: box ", n, " (top ", top, ", left ", left, ", ", h, " x ", w,
                    ") is not inside its image of ", H, " x ", W, " pixels");
  return {pixels + start + COLOURS * (top * W + left), COLOURS * W, h, w, 0, nullptr};
}

at::Tensor random_resized_crop_cpu(const at::Tensor& pixels, const at::Tensor& start, const at::Tensor& size,
                                   const at::Tensor& boxes, int64_t image_size) {
  TORCH_CHECK(pixels.dim() == 1 && start.dim() == 1 && size.dim() == 2 && size.size(1) == 2 && boxes.dim() == 2 &&
                  boxes.size(1) == 4 && size.size(0) == start.size(0) && boxes.size(0) == start.size(0),
              "random_resized_crop: a start, a size and a box are needed for each image, and a flat buffer");
  TORCH_CHECK(pixels.is_contiguous(), "random_resized_crop: the buffer must be contiguous");
  TORCH_CHECK(size.scalar_type() == at::kInt || size.scalar_type() == at::kLong,
              "random_resized_crop: sizes must be int32 or int64");
  TORCH_CHECK(1 <= image_size && image_size <= MOST_SIDE, "random_resized_crop: image_size must be 1..", MOST_SIDE);
  const int64_t N = start.size(0), S = image_size, bytes = pixels.numel();
  const at::Tensor starts = start.contiguous(), sizes = size.to(at::kLong).contiguous(), places = boxes.contiguous();
  const auto* in = pixels.const_data_ptr<uint8_t>();
  const auto* start_of = starts.const_data_ptr<int64_t>();
  const auto* size_of = sizes.const_data_ptr<int64_t>();
  const auto* box_at = places.const_data_ptr<int64_t>();
  const int64_t line = COLOURS * S, numbers = S * line;
  at::Tensor result = from_workspace({N, S, S, COLOURS}, {numbers, line, COLOURS, 1}, N * numbers, pixels.options());
  auto* out = result.mutable_data_ptr<uint8_t>();
  std::vector<random_resized_crop::Box> found;
  for (int64_t n = 0; n < N; ++n) {
    found.push_back(box_of(n, in, bytes, start_of[n], size_of + 2 * n, box_at + 4 * n));
    found.back().S = S;
    found.back().out = out + n * numbers;
  }
  static constexpr const random_resized_crop::Kernels* tables[] = FASTDARTS_TABLES(random_resized_crop_kernels);
  const auto resize = kernels(tables).resize;
  at::parallel_for(0, N, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) resize(found[n]);
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) { m.impl("random_resized_crop", &random_resized_crop_cpu); }

}  // namespace fastdarts
