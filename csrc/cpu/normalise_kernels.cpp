#include "normalise.h"
#include "vector.h"

namespace fastdarts::ISA {
namespace {

// Compilers widen bytes well in a plain loop over a whole row, and badly in vectors.
template <typename T>
void normalise(const uint8_t* __restrict pixels, const T* __restrict shift, const T* __restrict scale,
               T* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = (static_cast<T>(pixels[i]) - shift[i]) * scale[i];
}

}  // namespace

const NormaliseKernels normalise_kernels = {normalise<float>, normalise<double>};

}  // namespace fastdarts::ISA
