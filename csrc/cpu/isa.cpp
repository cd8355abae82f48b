#include "isa.h"

#include <ATen/Parallel.h>

#include <cstring>

namespace fastdarts {
namespace {

constexpr const char* NAMES[] = {"portable", "avx2", "avx512"};

bool available(Isa isa) {
#if defined(FASTDARTS_X86)
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default:
      return true;
  }
#else
  return isa == Isa::portable;
#endif
}

Isa best() {
  if (available(Isa::avx512)) return Isa::avx512;
  return available(Isa::avx2) ? Isa::avx2 : Isa::portable;
}

Isa& chosen() {
  static Isa isa = best();
  return isa;
}

}  // namespace

Isa isa() { return chosen(); }

const char* name(Isa isa) { return NAMES[static_cast<int>(isa)]; }

bool set_isa(const char* wanted) {
  for (int i = 0; i < 3; ++i) {
    if (std::strcmp(wanted, NAMES[i]) == 0 && available(static_cast<Isa>(i))) {
      chosen() = static_cast<Isa>(i);
      return true;
    }
  }
  return false;
}

void parallel(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

}  // namespace fastdarts
