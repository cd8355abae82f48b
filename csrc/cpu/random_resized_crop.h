// Kernel interface of csrc/cpu/random_resized_crop.cpp.
#pragma once

#include <cstdint>

namespace fastdarts::random_resized_crop {

// h x w pixels at `pixels`, row after row `pitch` bytes apart, to S x S pixels at `out`. Nothing else is read.
struct Box {
  const uint8_t* pixels;
  int64_t pitch, h, w, S;
  uint8_t* out;
};

struct Kernels {
  void (*resize)(const Box& box);
};

}  // namespace fastdarts::random_resized_crop

namespace fastdarts {
namespace portable {
extern const random_resized_crop::Kernels random_resized_crop_kernels;
}
namespace avx2 {
extern const random_resized_crop::Kernels random_resized_crop_kernels;
}
namespace avx512 {
extern const random_resized_crop::Kernels random_resized_crop_kernels;
}
namespace avx512vl {
extern const random_resized_crop::Kernels random_resized_crop_kernels;
}
}  // namespace fastdarts
