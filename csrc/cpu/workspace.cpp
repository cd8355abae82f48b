#include "workspace.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastdarts {
namespace {

constexpr std::size_t HEADER = 64, HUGE_PAGE = std::size_t{2} << 20;

// The address sanitizer should see each block's exact end, and its use after release.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool KEEPS = false;
#else
constexpr bool KEEPS = true;
#endif

std::atomic<bool> poisons = false;

struct Pool {
  std::mutex mutex;
  std::map<std::size_t, std::vector<void*>> idle;  // by size
};

Pool& pool() {
  static Pool* pool = new Pool;  // never destroyed: tensors that live until the process ends release to it
  return *pool;
}

// Sizes in steps of at most an eighth, so that shapes that differ little share blocks.
std::size_t rounded(std::size_t bytes) {
  if (!KEEPS) return bytes;
  std::size_t step = HEADER;
  while (step * 16 <= bytes) step *= 2;
  return (bytes + step - 1) / step * step;
}

void* allocate(std::size_t size) {
  void* block = nullptr;
  if (posix_memalign(&block, size < HUGE_PAGE ? HEADER : HUGE_PAGE, size) != 0) throw std::bad_alloc();
#if defined(__linux__)
  if (size >= HUGE_PAGE) madvise(block, size, MADV_HUGEPAGE);  // a hint: refusal costs speed, not correctness
#endif
  return block;
}

constexpr std::size_t LOCAL = std::size_t{1} << 20;  // the largest block that stays with a thread

struct LocalPool {
  std::map<std::size_t, std::vector<void*>> idle;

  ~LocalPool() {
    for (auto& [size, blocks] : idle) {
      for (void* block : blocks) std::free(block);
    }
  }
};

LocalPool& local_pool() {
  thread_local LocalPool pool;
  return pool;
}

std::size_t& size_of(void* block) { return *static_cast<std::size_t*>(block); }

// The smallest idle block of at least that size and at most twice it, or nullptr.
void* reuse(std::map<std::size_t, std::vector<void*>>& idle, std::size_t size) {
  for (auto at = idle.lower_bound(size); at != idle.end() && at->first <= 2 * size; ++at) {
    if (at->second.empty()) continue;
    void* block = at->second.back();
    at->second.pop_back();
    return block;
  }
  return nullptr;
}

void* hand_out(void* block, std::size_t size, std::size_t bytes) {
  if (block == nullptr) {
    block = allocate(size);
    size_of(block) = size;
  }
  void* data = static_cast<char*>(block) + HEADER;
  if (poisons) std::memset(data, 0xFF, bytes);  // NaN as float and as double
  return data;
}

}  // namespace

void* take(std::size_t bytes) {
  const std::size_t size = rounded(bytes + HEADER);
  void* block = nullptr;
  {
    const std::lock_guard lock(pool().mutex);
    block = reuse(pool().idle, size);
  }
  return hand_out(block, size, bytes);
}

void give(void* data) {
  void* block = static_cast<char*>(data) - HEADER;
  if (!KEEPS) return std::free(block);
  const std::lock_guard lock(pool().mutex);
  pool().idle[size_of(block)].push_back(block);
}

void* take_local(std::size_t bytes) {
  const std::size_t size = rounded(bytes + HEADER);
  return size > LOCAL ? take(bytes) : hand_out(reuse(local_pool().idle, size), size, bytes);
}

void give_local(void* data) {
  void* block = static_cast<char*>(data) - HEADER;
  if (!KEEPS || size_of(block) > LOCAL) return give(data);
  local_pool().idle[size_of(block)].push_back(block);
}

void poison(bool on) { poisons = on; }

std::size_t release_idle() {
  const std::lock_guard lock(pool().mutex);
  std::size_t bytes = 0;
  for (auto& [size, blocks] : pool().idle) {
    bytes += size * blocks.size();
    for (void* block : blocks) std::free(block);
  }
  pool().idle.clear();
  return bytes;
}

}  // namespace fastdarts
