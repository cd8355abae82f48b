// The instruction set of this process' kernels.
//
// A kernel file (*_kernels.cpp) is compiled once for each instruction set, each time in a separate namespace, named
// by the macro ISA, and exports one table of functions. To keep one set's code out of another's, such a file includes
// only vector.h and plain declarations: no ATen, and no standard library headers that emit inline functions.
#pragma once

#include <cstdint>

namespace fastdarts {

enum class Isa { portable, avx2, avx512, avx512vl };  // avx512vl: AVX-512's registers with vectors of 32 bytes

// The best that this processor supports, or that set_isa chose.
Isa isa();
// The one for convolutions of pixels of that many bytes: avx512vl for wide ones where the processor runs instructions
// on 64 bytes in two halves, so that whole vectors of 64 bytes win nothing and have more lanes without a channel.
Isa isa_for(int64_t pixel_bytes);
const char* name(Isa isa);
// Chooses by name, for all sizes; "best": the initial choice. False if the name is unknown, not compiled in, or not
// supported by this processor.
bool set_isa(const char* name);

// `tables[i]` is a kernel file's table for Isa i, nullptr if it is not compiled in.
template <typename Table>
const Table& kernels(const Table* const (&tables)[4], Isa of = isa()) {
  return *tables[static_cast<int>(of)];
}

// Runs body(context, begin, end) over parts of 0 .. n on torch's threads.
void parallel(int64_t n, void (*body)(void*, int64_t, int64_t), void* context);

// `body(i)` for each i in 0 .. n, on torch's threads.
template <typename Body>
void for_each(int64_t n, const Body& body) {
  parallel(
      n,
      [](void* context, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) (*static_cast<const Body*>(context))(i);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// The same, each thread in reverse order: data that the previous pass left in its cache comes first.
template <typename Body>
void for_each_backwards(int64_t n, const Body& body) {
  parallel(
      n,
      [](void* context, int64_t begin, int64_t end) {
        for (int64_t i = end; i > begin; --i) (*static_cast<const Body*>(context))(i - 1);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace fastdarts
