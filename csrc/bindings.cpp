// fastdarts._C: properties of the build, the processor and the threads. Ops have no bindings here: they register
// themselves with torch's dispatcher when this module is loaded.
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <stdexcept>
#include <string>

#include "cpu/isa.h"
#include "cpu/peak.h"
#include "cpu/stages.h"
#include "cpu/workspace.h"
#include "mixed_cell_saved.h"
#ifdef FASTDARTS_CUDA
#include "cuda/bind.h"
#endif

namespace py = pybind11;

namespace {

py::dict build_facts() {
  py::dict facts;
  facts["torch_headers"] = TORCH_VERSION;
  facts["cxx_standard"] = __cplusplus;
#ifdef _OPENMP
  facts["openmp"] = _OPENMP;
#endif
  return facts;
}

py::dict cpu_features() {
  py::dict features;
#if defined(__x86_64__)
  features["avx2"] = static_cast<bool>(__builtin_cpu_supports("avx2"));
  features["fma"] = static_cast<bool>(__builtin_cpu_supports("fma"));
  features["avx512f"] = static_cast<bool>(__builtin_cpu_supports("avx512f"));
  features["avx512dq"] = static_cast<bool>(__builtin_cpu_supports("avx512dq"));
  features["avx512vl"] = static_cast<bool>(__builtin_cpu_supports("avx512vl"));
  features["avx512bw"] = static_cast<bool>(__builtin_cpu_supports("avx512bw"));
#elif defined(__aarch64__)
  features["neon"] = true;
#endif
  return features;
}

py::dict threads() {
  py::dict counts;
  counts["intra_op"] = at::get_num_threads();
  counts["inter_op"] = at::get_num_interop_threads();
  return counts;
}

void set_isa(const std::string& name) {
  if (!fastdarts::set_isa(name.c_str())) {
    throw std::invalid_argument("instruction set " + name + ": this processor or this build has none of that name");
  }
}

py::dict stage_seconds() {
  py::dict seconds;
  for (int i = 0; i < static_cast<int>(fastdarts::Stage::count); ++i) {
    seconds[fastdarts::STAGE_NAMES[i]] = fastdarts::stage_seconds(static_cast<fastdarts::Stage>(i));
  }
  return seconds;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the native build; the ops it brings are in torch.ops.fastdarts.";
  m.def("build_facts", &build_facts, "What the compiler saw: torch's headers, the C++ standard, the date of OpenMP.");
  m.def("cpu_features", &cpu_features, "Instruction sets that this processor has (of those kernels may choose from).");
  m.def(
      "isa", [] { return fastdarts::name(fastdarts::isa()); },
      "The instruction set that the kernels run with; wide convolutions may use vectors of half its size.");
  m.def("set_isa", &set_isa,
        "Choose it for all sizes: portable, avx2, avx512, avx512vl, or best, by size; ValueError where this processor "
        "has it not.");
  m.def("mixed_cell_saved", &fastdarts::mixed_cell_saved, "Numbers that mixed_cell keeps for its backward.");
  m.def("fma_peak", &fastdarts::fma_peak, "Float operations a second of multiply-adds in registers, on all threads.");
  m.def("stage_seconds", &stage_seconds, "Wall time of mixed_cell's stages since reset_stages().");
  m.def("reset_stages", &fastdarts::reset_stages, "Start stage_seconds() anew.");
  m.def("poison", &fastdarts::poison, "Fill workspace memory with NaN when it is taken (for tests).");
  m.def("release_idle", &fastdarts::release_idle, "Give the workspace's idle memory back to the system; its bytes.");
  m.def("threads", &threads, "Torch's thread counts, which the kernels use.");
#ifdef FASTDARTS_CUDA
  fastdarts::cuda::bind(m);
#endif
}
