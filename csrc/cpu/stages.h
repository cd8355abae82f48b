// Wall time of the fused cell's stages and of the preprocess layers, summed over all calls, for bench.floor.
#pragma once

namespace fastdarts {

enum class Stage {
  relu_conv_bn,           // preprocess layers, forward
  relu_conv_bn_backward,  // and backward
  pack,                   // weights into kernel layout, states and gradients into block layout
  first_halves,           // y of the convolutions that read a state
  second_halves,          // y of the second halves
  nodes,                  // the affine sums
  sums,                   // backward: the two sums of each candidate
  second_gradients,       // backward of second halves
  first_gradients,        // backward of the convolutions that read a state
  collect,                // weight gradients of all chunks added up
  finish,                 // pools, skips, bypass
  count,
};

constexpr const char* STAGE_NAMES[] = {
    "relu_conv_bn",     "relu_conv_bn_backward", "pack",    "first_halves", "second_halves", "nodes", "sums",
    "second_gradients", "first_gradients",       "collect", "finish"};

// Adds the time of a scope to a stage.
class Timed {
 public:
  explicit Timed(Stage stage);
  ~Timed();
  Timed(const Timed&) = delete;
  Timed& operator=(const Timed&) = delete;

 private:
  Stage stage_;
  double begin_;
};

// Seconds of a stage since the last reset.
double stage_seconds(Stage stage);
void reset_stages();

}  // namespace fastdarts
