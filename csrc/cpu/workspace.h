// Memory that is kept from call to call: fresh pages cost more than the arithmetic that fills them.
#pragma once

#include <cstddef>

namespace fastdarts {

// At least `bytes`, aligned to 64, not initialised; thread-safe.
void* take(std::size_t bytes);
// Hands it back; it stays with the process for the next take of its size.
void give(void* block);
// The same for a block that its taker's own thread gives back: small ones stay with the thread, without a lock.
void* take_local(std::size_t bytes);
void give_local(void* block);
// From now on fill what is taken with NaN, for tests that nothing is read before it is written.
void poison(bool on);
// Returns what is idle to the system; the number of bytes.
std::size_t release_idle();

}  // namespace fastdarts
