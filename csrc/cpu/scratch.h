// Workspace memory for the duration of a scope. Only kernel files include this (see isa.h).
#pragma once

#include <cstddef>

#include "workspace.h"

namespace fastdarts::ISA {

template <typename T>
class Scratch {
 public:
  explicit Scratch(std::size_t n) : data_(static_cast<T*>(take_local(n * sizeof(T)))) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { give_local(data_); }
  operator T*() const { return data_; }

 private:
  T* data_;
};

}  // namespace fastdarts::ISA
