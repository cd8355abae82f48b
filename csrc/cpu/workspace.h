// Memory reused from call to call: fresh pages cost more than the arithmetic that fills them.
#pragma once

#include <cstddef>

namespace fastdarts {

// At least `bytes`, aligned to 64, not initialised; thread-safe.
void* take(std::size_t bytes);
// Releases it; the process keeps it for the next request of its size.
void give(void* block);
// The same for a block that its own thread releases: small ones stay with the thread, without a lock.
void* take_local(std::size_t bytes);
void give_local(void* block);
// From now on fill new blocks with NaN, so that tests detect reads before writes.
void poison(bool on);
// Returns idle memory to the system; returns its number of bytes.
std::size_t release_idle();

}  // namespace fastdarts
