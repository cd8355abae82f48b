// ReLU, 1x1 convolution, BN as one op: fastdarts/ops/relu_conv_bn.py says what each argument means and holds the
// definition that this must equal.
#include "relu_conv_bn.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "isa.h"
#include "tensors.h"

namespace fastdarts {
namespace {

const LayerKernels& layer_kernels() {
  static constexpr const LayerKernels* tables[] = FASTDARTS_TABLES(layer_kernels);
  return kernels(tables);
}

LayerPlan plan_of(const at::Tensor& x, at::TensorList weights, bool batch_statistics, double eps) {
  TORCH_CHECK(x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast),
              "relu_conv_bn: x must be (N, C, H, W) in channels_last memory");
  TORCH_CHECK(weights.size() == 1 || weights.size() == 2, "relu_conv_bn: one or two weights");
  const int taps = static_cast<int>(weights.size());
  const int64_t H = x.size(2), W = x.size(3), D = taps * weights[0].size(0);
  TORCH_CHECK(taps == 1 || (H % 2 == 0 && W % 2 == 0), "relu_conv_bn: FactorizedReduce halves even sizes");
  for (const at::Tensor& w : weights) {
    TORCH_CHECK(w.is_contiguous() && w.size(0) * taps == D && w.numel() == w.size(0) * x.size(1) &&
                    w.scalar_type() == x.scalar_type(),
                "relu_conv_bn: weights must be contiguous (D, C, 1, 1) of x' dtype");
  }
  return {x.size(0), H, W, H / taps, W / taps, x.size(1), D, taps, batch_statistics, eps};
}

std::tuple<at::Tensor, at::Tensor> relu_conv_bn(const at::Tensor& x, at::TensorList weights,
                                                const std::optional<at::Tensor>& running_mean,
                                                const std::optional<at::Tensor>& running_var, double eps) {
  const auto plan = plan_of(x, weights, !running_mean.has_value(), eps);
  auto out = channels_last(plan.N, plan.D, plan.Ho, plan.Wo, x.options());
  auto statistics = at::empty({2, plan.D}, x.options().dtype(at::kDouble));
  if (!plan.batch_statistics) {
    statistics[0].copy_(*running_mean);
    statistics[1].copy_(running_var.value());
  }
  double* mean = statistics.mutable_data_ptr<double>();
  const auto call = [&]<typename T>(void (*run)(const LayerPlan&, const LayerForward<T>&)) {
    const auto matrices = pointers<T>(weights);
    run(plan, {x.const_data_ptr<T>(), matrices.data(), mean, mean + plan.D, out.mutable_data_ptr<T>()});
  };
  if (x.scalar_type() == at::kDouble) {
    call(layer_kernels().forward_double);
  } else {
    call(layer_kernels().forward_float);
  }
  return {out, statistics};
}

std::tuple<at::Tensor, std::vector<at::Tensor>> relu_conv_bn_backward(const at::Tensor& grad, const at::Tensor& x,
                                                                      at::TensorList weights, const at::Tensor& out,
                                                                      const at::Tensor& statistics, double eps,
                                                                      bool batch_statistics, bool need_x,
                                                                      bool need_weights) {
  const auto plan = plan_of(x, weights, batch_statistics, eps);
  TORCH_CHECK(grad.sizes() == out.sizes() && grad.is_contiguous(at::MemoryFormat::ChannelsLast) &&
                  out.is_contiguous(at::MemoryFormat::ChannelsLast),
              "relu_conv_bn_backward: grad and out must be of one shape, in channels_last memory");
  auto grad_x = need_x ? channels_last(plan.N, plan.C, plan.H, plan.W, x.options()) : at::empty({0}, x.options());
  std::vector<at::Tensor> grad_weights;
  for (const at::Tensor& w : weights) {
    if (need_weights) grad_weights.push_back(at::empty(w.sizes(), w.options()));
  }
  const auto call = [&]<typename T>(void (*run)(const LayerPlan&, const LayerBackward<T>&)) {
    const auto matrices = pointers<T>(weights);
    const auto to = mutable_pointers<T>(grad_weights);
    run(plan, {grad.const_data_ptr<T>(), x.const_data_ptr<T>(), matrices.data(), out.const_data_ptr<T>(),
               statistics.const_data_ptr<double>() + plan.D, need_x ? grad_x.mutable_data_ptr<T>() : nullptr,
               need_weights ? to.data() : nullptr});
  };
  if (x.scalar_type() == at::kDouble) {
    call(layer_kernels().backward_double);
  } else {
    call(layer_kernels().backward_float);
  }
  return {grad_x, grad_weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) {
  m.impl("relu_conv_bn", &relu_conv_bn);
  m.impl("relu_conv_bn_backward", &relu_conv_bn_backward);
}

}  // namespace fastdarts
