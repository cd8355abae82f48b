#include "isa.h"

#include <ATen/Parallel.h>

#include <cstring>
#include <iterator>

#if defined(FASTDARTS_X86)
#include <cpuid.h>
#endif

namespace fastdarts {
namespace {

constexpr const char* NAMES[] = {"portable", "avx2", "avx512", "avx512vl"};

bool available(Isa isa) {
#if defined(FASTDARTS_X86)
  switch (isa) {
    case Isa::avx512:
    case Isa::avx512vl:
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

// Whether 64 bytes are two passes through the arithmetic units. AMD's processors say so (CPUID 8000001A, bit 3: whole).
bool halves_vectors() {
#if defined(FASTDARTS_X86)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __builtin_cpu_is("amd") && __get_cpuid(0x8000001A, &eax, &ebx, &ecx, &edx) != 0 && (eax & 8) == 0;
#else
  return false;
#endif
}

struct Choice {
  Isa isa = best();
  bool by_size = isa == Isa::avx512 && halves_vectors();
};

Choice& choice() {
  static Choice choice;
  return choice;
}

constexpr int64_t NARROW = 128;  // bytes of a pixel up to which whole vectors are faster, measured

}  // namespace

Isa isa() { return choice().isa; }

Isa isa_for(int64_t pixel_bytes) { return choice().by_size && pixel_bytes > NARROW ? Isa::avx512vl : isa(); }

const char* name(Isa isa) { return NAMES[static_cast<int>(isa)]; }

bool set_isa(const char* wanted) {
  if (std::strcmp(wanted, "best") == 0) {
    choice() = Choice{};
    return true;
  }
  for (int i = 0; i < static_cast<int>(std::size(NAMES)); ++i) {
    if (std::strcmp(wanted, NAMES[i]) == 0 && available(static_cast<Isa>(i))) {
      choice() = {static_cast<Isa>(i), false};
      return true;
    }
  }
  return false;
}

void parallel(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { body(context, begin, end); });
}

}  // namespace fastdarts
