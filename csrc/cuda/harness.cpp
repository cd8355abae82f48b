// Runs the kernels of this folder on the CPU, as plain C++: all threads of a block phase by phase, block after block.
// For the sanitizers: each argument has an allocation of exactly its size, shared memory is filled with NaN.
//
//   harness FILE   reads: kernel, dtype, number of programs, "forward" or "backward" (the order of a block's threads,
//   which
//                  may not matter), how many integers and how many tensors; then "name value" and "name bytes" lines;
//                  then the tensors' bytes. Runs, and writes the tensors over their old bytes.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "mixed_cell_pools.h"
#include "mixed_cell_separable.h"
#include "mixed_cell_state.h"
#include "mixed_cell_taps.h"
#include "patch_mask.h"

namespace {

using namespace fastdarts::cuda;

template <class K, int FIRST, int LAST>
void phases(std::vector<K*>& threads, int round) {
  if constexpr (FIRST < LAST) {
    for (K* thread : threads) thread->template phase<FIRST>(round);
    phases<K, FIRST + 1, LAST>(threads, round);
  }
}

struct OnHost {
  bool is_backward;

  template <class K>
  void operator()(const typename K::Args& args, int64_t blocks) const {
    for (int block = 0; block < blocks; ++block) {
      const auto shared = std::make_unique_for_overwrite<typename K::Shared>();
      std::fill_n(reinterpret_cast<unsigned char*>(shared.get()), sizeof(typename K::Shared), 0xFF);
      std::vector<K> threads;
      threads.reserve(K::THREADS);
      for (int t = 0; t < K::THREADS; ++t) threads.emplace_back(args, *shared, block, t);
      std::vector<K*> order;
      for (K& thread : threads) order.push_back(&thread);
      if (is_backward) std::reverse(order.begin(), order.end());
      const int rounds = threads[0].rounds();
      for (const K& thread : threads) {
        if (thread.rounds() != rounds) throw std::runtime_error("threads of a block have different numbers of rounds");
      }
      for (int round = 0; round < rounds; ++round) phases<K, 0, K::ROUND>(order, round);
      phases<K, K::ROUND, K::ROUND + K::AFTER>(order, rounds);
    }
  }
};

// A kernel's arguments by name.
struct Given {
  std::map<std::string, int64_t> integers;
  std::map<std::string, std::unique_ptr<char[]>> tensors;
  std::vector<std::pair<std::string, int64_t>> sizes;

  int64_t integer(const std::string& name) const { return integers.at(name); }
  int64_t integer_or_0(const std::string& name) const { return integers.contains(name) ? integers.at(name) : 0; }
  template <class T>
  T* tensor(const std::string& name) const {
    const auto found = tensors.find(name);
    return found == tensors.end() ? nullptr : reinterpret_cast<T*>(found->second.get());
  }
};

void run_patch_mask(const Given& given, Dtype dtype, OnHost run) {
  MaskArgs args{.images = given.tensor<uint8_t>("images"),
                .index = given.tensor<int64_t>("index"),
                .step = given.tensor<int64_t>("step"),
                .flip = given.tensor<bool>("flip"),
                .fill = given.tensor<void>("fill"),
                .mask = given.tensor<bool>("mask"),
                .x = given.tensor<void>("x"),
                .seed = given.integer("seed"),
                .use = given.integer("use"),
                .num_masked = given.integer("num_masked"),
                .N = given.integer("N"),
                .H = given.integer("H"),
                .W = given.integer("W"),
                .side = given.integer("side"),
                .shift = {},
                .scale = {}};
  std::copy_n(given.tensor<float>("shift"), 3, args.shift);
  std::copy_n(given.tensor<float>("scale"), 3, args.scale);
  patch_mask(args, dtype, run);
}

CellArgs cell(const Given& given) {
  CellArgs args;
#define FASTDARTS_FIELD(name) args.name = given.tensor<void>(#name);
  FASTDARTS_CELL_POINTERS(FASTDARTS_FIELD)
#undef FASTDARTS_FIELD
#define FASTDARTS_FIELD(name) args.name = given.integer_or_0(#name);
  FASTDARTS_CELL_INTEGERS(FASTDARTS_FIELD)
#undef FASTDARTS_FIELD
  return args;
}

void run_kernel(const std::string& kernel, const Given& given, Dtype dtype, int64_t programs, OnHost run) {
  if (kernel == "patch_mask") {
    run_patch_mask(given, dtype, run);
  } else if (kernel == "pool_sums") {
    pool_sums(cell(given), dtype, programs, run);
  } else if (kernel == "pool_gradient") {
    pool_gradient(cell(given), dtype, programs, run);
  } else if (kernel == "tap_gradient") {
    tap_gradient(cell(given), dtype, programs, run);
  } else if (kernel == "state_gradient") {
    state_gradient(cell(given), dtype, programs, run);
  } else if (kernel == "separable") {
    separable(cell(given), dtype, programs, run);
  } else {
    throw std::runtime_error("no kernel " + kernel);
  }
}

void run_file(const char* path) {
  std::string kernel, dtype, order;
  int64_t programs = 0, n_integers = 0, n_tensors = 0;
  Given given;
  std::ifstream in(path, std::ios::binary);
  in >> kernel >> dtype >> programs >> order >> n_integers >> n_tensors;
  std::string name;
  for (int64_t value = 0; n_integers > 0 && in >> name >> value; --n_integers) given.integers[name] = value;
  for (int64_t bytes = 0; n_tensors > 0 && in >> name >> bytes; --n_tensors) given.sizes.emplace_back(name, bytes);
  in.get();
  for (const auto& [tensor, bytes] : given.sizes) {
    auto& memory = given.tensors[tensor] = std::make_unique<char[]>(static_cast<std::size_t>(bytes));
    in.read(memory.get(), bytes);
  }
  if (!in) throw std::runtime_error(std::string(path) + " is cut off");
  in.close();
  const std::map<std::string, Dtype> dtypes = {
      {"float32", Dtype::float32}, {"float16", Dtype::float16}, {"bfloat16", Dtype::bfloat16}};
  run_kernel(kernel, given, dtypes.at(dtype), programs, OnHost{order == "backward"});
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  for (const auto& [tensor, bytes] : given.sizes) out.write(given.tensors[tensor].get(), bytes);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return std::fputs("usage: harness FILE\n", stderr), 2;
  try {
    run_file(argv[1]);
  } catch (const std::exception& error) {
    return std::cerr << "harness: " << error.what() << '\n', 1;
  }
  return 0;
}
