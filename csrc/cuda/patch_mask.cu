// Registers patch_mask_cuda, an alternative to the Triton kernels of kernels/patch_mask.py; kernels in patch_mask.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "../rows.h"
#include "launch.h"
#include "patch_mask.h"

namespace fastdarts::cuda {
namespace {

Dtype dtype_of(at::ScalarType type) {
  if (type == at::kFloat) return Dtype::float32;
  if (type == at::kHalf) return Dtype::float16;
  TORCH_CHECK(type == at::kBFloat16, "patch_mask: the CUDA kernels write float32, float16 and bfloat16");
  return Dtype::bfloat16;
}

std::tuple<at::Tensor, at::Tensor> registered(const at::Tensor& images, const at::Tensor& index, const at::Tensor& step,
                                              const at::Tensor& flip, const at::Tensor& fill, int64_t seed,
                                              int64_t stream, int64_t patch_size, int64_t num_masked,
                                              at::ArrayRef<double> mean, at::ArrayRef<double> std) {
  TORCH_CHECK(images.dim() == 4 && images.size(3) == 3 && mean.size() == 3 && std.size() == 3 && fill.numel() == 3,
              "patch_mask: three channels are needed, images NHWC");
  const int64_t N = images.size(0), H = images.size(1), W = images.size(2);
  TORCH_CHECK(index.numel() == N && flip.numel() == N && step.numel() == 1, "patch_mask: one index and flip an image");
  TORCH_CHECK(patch_size > 0 && H % patch_size == 0 && W % patch_size == 0,
              "patch_mask: the patch must divide the image");
  const int64_t rows = H / patch_size, cols = W / patch_size;
  TORCH_CHECK(0 <= num_masked && num_masked <= rows * cols, "patch_mask: num_masked must be within 0..P");
  const Dtype dtype = dtype_of(fill.scalar_type());
  const c10::cuda::CUDAGuard guard(images.device());
  const at::Tensor x = at::empty({N, H, W, 3}, fill.options());
  const at::Tensor mask = at::empty({N, rows, cols}, images.options().dtype(at::kBool));
  const at::Tensor dense[] = {images.contiguous(), index.contiguous(), flip.contiguous(), fill.contiguous()};
  MaskArgs args{.images = dense[0].const_data_ptr<uint8_t>(),
                .index = dense[1].const_data_ptr<int64_t>(),
                .step = step.const_data_ptr<int64_t>(),
                .flip = dense[2].const_data_ptr<bool>(),
                .fill = dense[3].const_data_ptr(),
                .mask = mask.mutable_data_ptr<bool>(),
                .x = x.mutable_data_ptr(),
                .seed = seed,
                .use = PURPOSE_MASK + 256 * stream,
                .num_masked = num_masked,
                .N = N,
                .H = H,
                .W = W,
                .side = patch_size,
                .shift = {},
                .scale = {}};
  for (int c = 0; c < 3; ++c) {
    args.shift[c] = static_cast<float>(255.0 * mean[c]);
    args.scale[c] = static_cast<float>(1.0 / (255.0 * std[c]));
  }
  patch_mask(args, dtype, OnDevice{c10::cuda::getCurrentCUDAStream(images.device().index()).stream()});
  return {x.permute({0, 3, 1, 2}), mask};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CUDA, m) { m.impl("patch_mask_cuda", &registered); }

}  // namespace fastdarts::cuda
