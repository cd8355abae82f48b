// How many numbers the CPU's mixed_cell keeps for its backward: what the op's fake kernel has to know.
#pragma once

#include <cstdint>
#include <vector>

namespace fastdarts {

int64_t mixed_cell_saved(const std::vector<int64_t>& graph, const std::vector<int64_t>& shape, int64_t partial_channels,
                         int64_t element_size);

}  // namespace fastdarts
