#include "ranks.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <tuple>

namespace fastdarts {
namespace {

// Returns the ranks' rows stacked, or (not apart) their sum; and the number of ranks. Calls Python through torch's
// dispatcher, which takes the interpreter's lock and forwards exceptions.
std::tuple<at::Tensor, int64_t> over_ranks(const at::Tensor& row, bool apart, int64_t sync) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastdarts::over_ranks", "")
                             .typed<std::tuple<at::Tensor, int64_t>(const at::Tensor&, bool, int64_t)>();
  auto [total, ranks] = op.call(row, apart, sync);
  TORCH_CHECK(
      total.scalar_type() == at::kDouble && total.is_contiguous() && total.numel() == (apart ? ranks : 1) * row.numel(),
      "over_ranks: not the sums of what was given");
  return {total, ranks};
}

}  // namespace

void merge_over_ranks(int64_t sync, int64_t n, int64_t m, double* mean, double* variance) {
  const auto row = at::empty({2 * n}, at::kDouble);
  double* own = row.mutable_data_ptr<double>();
  std::copy_n(mean, n, own);
  for (int64_t i = 0; i < n; ++i) own[n + i] = variance[i] * static_cast<double>(m);
  const auto [table, ranks] = over_ranks(row, true, sync);
  const double* rows = table.const_data_ptr<double>();
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0, squares = 0;
    for (int64_t r = 0; r < ranks; ++r) sum += rows[r * 2 * n + i];
    mean[i] = sum / static_cast<double>(ranks);
    for (int64_t r = 0; r < ranks; ++r) {
      const double apart = rows[r * 2 * n + i] - mean[i];
      squares += rows[(r * 2 + 1) * n + i] + static_cast<double>(m) * apart * apart;
    }
    variance[i] = squares / static_cast<double>(m * ranks);
  }
}

int64_t sum_over_ranks(int64_t sync, int64_t n, double* numbers) {
  const auto [total, ranks] = over_ranks(at::from_blob(numbers, {n}, at::kDouble), false, sync);
  std::copy_n(total.const_data_ptr<double>(), n, numbers);
  return ranks;
}

}  // namespace fastdarts
