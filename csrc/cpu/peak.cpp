#include "peak.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "isa.h"
#include "tensors.h"

namespace fastdarts {

double fma_peak() {
  static constexpr const PeakKernels* tables[] = FASTDARTS_TABLES(peak_kernels);
  const auto run = kernels(tables).run;
  constexpr long ROUNDS = 4'000'000;
  const int threads = at::get_num_threads();
  double best = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {
    std::vector<double> operations(threads);
    const auto begin = std::chrono::steady_clock::now();
    for_each(threads, [&](int64_t thread) { operations[thread] = run(ROUNDS); });
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    double total = 0;
    for (const double n : operations) total += n;
    best = std::max(best, total / seconds);
  }
  return best;
}

}  // namespace fastdarts
