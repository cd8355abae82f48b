// Tensors of the CPU ops: from the workspace, and as kernel pointers. Not for kernel files.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <vector>

#include "workspace.h"

#if defined(FASTDARTS_X86)
#define FASTDARTS_TABLES(table) {&portable::table, &avx2::table, &avx512::table, &avx512vl::table}
#else
#define FASTDARTS_TABLES(table) {&portable::table, nullptr, nullptr, nullptr}
#endif

namespace fastdarts {

// A tensor of workspace memory, returned to the workspace when the tensor is destroyed.
inline at::Tensor from_workspace(at::IntArrayRef sizes, at::IntArrayRef strides, int64_t n,
                                 const at::TensorOptions& options) {
  void* data = take(static_cast<std::size_t>(n) * options.dtype().itemsize());
  return at::from_blob(data, sizes, strides, [](void* block) { give(block); }, options);
}

// (N, C, H, W) in channels_last memory.
inline at::Tensor channels_last(int64_t N, int64_t C, int64_t H, int64_t W, const at::TensorOptions& options) {
  return from_workspace({N, C, H, W}, {H * W * C, 1, W * C, C}, N * C * H * W, options);
}

template <typename T>
std::vector<const T*> pointers(at::TensorList tensors) {
  std::vector<const T*> result;
  for (const at::Tensor& t : tensors) result.push_back(t.const_data_ptr<T>());
  return result;
}

template <typename T>
std::vector<T*> mutable_pointers(at::TensorList tensors) {
  std::vector<T*> result;
  for (const at::Tensor& t : tensors) result.push_back(t.mutable_data_ptr<T>());
  return result;
}

}  // namespace fastdarts
