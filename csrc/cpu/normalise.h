// Normalisation of pixels, shared by patch_mask and masked_loss.
#pragma once

#include <cstdint>

namespace fastdarts {

// out[i] = (pixels[i] - shift[i]) * scale[i] for i in 0 .. n, rounded after each operation.
template <typename T>
using Normalise = void (*)(const uint8_t* pixels, const T* shift, const T* scale, T* out, int64_t n);

struct NormaliseKernels {
  Normalise<float> f32;
  Normalise<double> f64;
};

namespace portable {
extern const NormaliseKernels normalise_kernels;
}
namespace avx2 {
extern const NormaliseKernels normalise_kernels;
}
namespace avx512 {
extern const NormaliseKernels normalise_kernels;
}
namespace avx512vl {
extern const NormaliseKernels normalise_kernels;
}

}  // namespace fastdarts
