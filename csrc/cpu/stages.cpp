#include "stages.h"

#include <array>
#include <atomic>
#include <chrono>

namespace fastdarts {
namespace {

std::array<std::atomic<double>, static_cast<int>(Stage::count)> seconds;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

Timed::Timed(Stage stage) : stage_(stage), begin_(now()) {}
Timed::~Timed() { seconds[static_cast<int>(stage_)].fetch_add(now() - begin_, std::memory_order_relaxed); }

double stage_seconds(Stage stage) { return seconds[static_cast<int>(stage)].load(std::memory_order_relaxed); }
void reset_stages() {
  for (auto& s : seconds) s.store(0, std::memory_order_relaxed);
}

}  // namespace fastdarts
