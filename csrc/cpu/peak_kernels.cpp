#include "peak.h"
#include "vector.h"

namespace fastdarts::ISA {
namespace {

double run(long rounds) {
  using V = Vec<float>;
  constexpr int CHAINS = 12;  // independent sums: more than the units' latency times their number
  V sum[CHAINS];
  V factor = all(0.999F), term = all(1e-3F);
  for (int i = 0; i < CHAINS; ++i) sum[i] = all(1e-3F * static_cast<float>(i));
  pin(factor);
  pin(term);
  for (long n = 0; n < rounds; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; ++i) {
      V next = sum[i] * factor + term;
      pin(next);
      sum[i] = next;
    }
  }
  for (int i = 0; i < CHAINS; ++i) asm volatile("" : : "m"(sum[i]));  // as if they were used
  return 2.0 * LANES<float> * CHAINS * static_cast<double>(rounds);
}

}  // namespace

const PeakKernels peak_kernels = {run};

}  // namespace fastdarts::ISA
