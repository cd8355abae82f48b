// Sums over the ranks that share a batch, for synchronised BatchNorm. Ranks are passed as an integer handle
// (fastdarts/ops/sync.py); 0: a single process. These functions call Python, which may wait for other ranks and may
// raise: only the op's own thread calls them, between parallel regions. Plain declarations, for kernel files too.
#pragma once

#include <cstdint>

namespace fastdarts {

// The mean and the biased variance of n channels over m values of this rank become those over m values of every rank.
void merge_over_ranks(int64_t sync, int64_t n, int64_t m, double* mean, double* variance);
// Replaces n numbers by their sums over the ranks; returns how many ranks there are.
int64_t sum_over_ranks(int64_t sync, int64_t n, double* numbers);

}  // namespace fastdarts
