// The size of the CPU mixed_cell's memory for its backward, for the op's fake kernel.
#pragma once

#include <cstdint>
#include <vector>

namespace fastdarts {

int64_t mixed_cell_saved(const std::vector<int64_t>& graph, const std::vector<int64_t>& shape, int64_t partial_channels,
                         int64_t element_size);

}  // namespace fastdarts
