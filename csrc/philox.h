// Philox4x32-10 (Salmon et al., SC 2011): the same words as fastdarts/ops/philox.py, which documents their purposes.
#pragma once

#include <array>
#include <cstdint>

namespace fastdarts {

using Words = std::array<uint32_t, 4>;

constexpr Words philox4x32(Words counter, uint64_t seed) {
  constexpr uint64_t M0 = 0xD2511F53, M1 = 0xCD9E8D57;
  constexpr uint32_t W0 = 0x9E3779B9, W1 = 0xBB67AE85;
  auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += W0, k1 += W1) {
    const uint64_t p0 = M0 * counter[0], p1 = M1 * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ k0, static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ k1, static_cast<uint32_t>(p0)};
  }
  return counter;
}

}  // namespace fastdarts
