// ReLU, 1x1 convolution, BN as one op. fastdarts/ops/relu_conv_bn.py documents the arguments and has the definition,
// which this must equal.
#include "relu_conv_bn.h"

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "isa.h"
#include "tensors.h"

namespace fastdarts {
namespace {

const LayerKernels& kernels_for(const LayerPlan& plan, const at::Tensor& x) {
  static constexpr const LayerKernels* tables[] = FASTDARTS_TABLES(layer_kernels);
  return kernels(tables, isa_for(std::max(plan.C, plan.D) * x.element_size()));
}

// The plans of one layer or two; those of layer i take `counts[i]` of `weights`.
struct Layers {
  std::vector<LayerPlan> plans;
  std::vector<std::size_t> first_weight;

  Layers(at::TensorList xs, at::TensorList weights, at::IntArrayRef counts, bool batch_statistics, double eps) {
    TORCH_CHECK((xs.size() == 1 || xs.size() == 2) && xs.size() == counts.size(), "relu_conv_bn: one layer or two");
    std::size_t at = 0;
    for (std::size_t i = 0; i < xs.size(); ++i) {
      TORCH_CHECK((counts[i] == 1 || counts[i] == 2) && at + counts[i] <= weights.size(),
                  "relu_conv_bn: one or two weights for each layer");
      first_weight.push_back(at);
      plans.push_back(plan_of(xs[i], weights.slice(at, counts[i]), batch_statistics, eps));
      at += counts[i];
      const LayerPlan &one = plans[0], &other = plans[i];
      TORCH_CHECK(
          one.N == other.N && one.Ho == other.Ho && one.Wo == other.Wo && xs[i].scalar_type() == xs[0].scalar_type(),
          "relu_conv_bn: layers that are ready together have one size and dtype");
    }
    TORCH_CHECK(at == weights.size(), "relu_conv_bn: weights of no layer");
  }

  int count() const { return static_cast<int>(plans.size()); }

 private:
  static LayerPlan plan_of(const at::Tensor& x, at::TensorList weights, bool batch_statistics, double eps) {
    TORCH_CHECK(x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast),
                "relu_conv_bn: x must be (N, C, H, W) in channels_last memory");
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
};

// Of each layer, as doubles, contiguous.
std::vector<at::Tensor> doubles(at::TensorList each, const Layers& layers) {
  TORCH_CHECK(each.empty() || each.size() == layers.plans.size(),
              "relu_conv_bn: affine parameters of every layer or of none");
  std::vector<at::Tensor> found;
  for (std::size_t i = 0; i < each.size(); ++i) {
    TORCH_CHECK(each[i].numel() == layers.plans[i].D, "relu_conv_bn: affine parameters must be (D,)");
    found.push_back(each[i].to(at::kDouble).contiguous());
  }
  return found;
}

const double* data_of(const std::vector<at::Tensor>& each, std::size_t i) {
  return each.empty() ? nullptr : each[i].const_data_ptr<double>();
}

std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>, std::vector<at::Tensor>> relu_conv_bn(
    at::TensorList xs, at::TensorList weights, at::IntArrayRef counts, at::TensorList scales, at::TensorList shifts,
    at::TensorList running_means, at::TensorList running_vars, double eps, int64_t sync) {
  const bool batch_statistics = running_means.empty();
  const Layers layers(xs, weights, counts, batch_statistics, eps);
  TORCH_CHECK(running_means.size() == running_vars.size() && (batch_statistics || running_means.size() == xs.size()),
              "relu_conv_bn: running statistics of every layer or of none");
  const auto scale = doubles(scales, layers), shift = doubles(shifts, layers);
  TORCH_CHECK(scale.size() == shift.size(), "relu_conv_bn: scales and shifts, or none");
  std::vector<at::Tensor> outs, normalised, statistics;
  for (std::size_t i = 0; i < xs.size(); ++i) {
    const LayerPlan& p = layers.plans[i];
    outs.push_back(channels_last(p.N, p.D, p.Ho, p.Wo, xs[i].options()));
    if (!scale.empty()) normalised.push_back(channels_last(p.N, p.D, p.Ho, p.Wo, xs[i].options()));
    statistics.push_back(at::empty({2, p.D}, xs[i].options().dtype(at::kDouble)));
    if (batch_statistics) continue;
    statistics[i][0].copy_(running_means[i]);
    statistics[i][1].copy_(running_vars[i]);
  }
  const auto call = [&]<typename T>(void (*run)(const LayerPlan*, const LayerForward<T>*, int, int64_t)) {
    const auto matrices = pointers<T>(weights);
    std::vector<LayerForward<T>> calls;
    for (std::size_t i = 0; i < xs.size(); ++i) {
      double* mean = statistics[i].mutable_data_ptr<double>();
      calls.push_back({xs[i].const_data_ptr<T>(), matrices.data() + layers.first_weight[i], mean,
                       mean + layers.plans[i].D, data_of(scale, i), data_of(shift, i), outs[i].mutable_data_ptr<T>(),
                       (scale.empty() ? outs : normalised)[i].mutable_data_ptr<T>()});
    }
    run(layers.plans.data(), calls.data(), layers.count(), batch_statistics ? sync : 0);
  };
  const LayerKernels& of = kernels_for(layers.plans[0], xs[0]);
  if (xs[0].scalar_type() == at::kDouble) {
    call(of.forward_double);
  } else {
    call(of.forward_float);
  }
  return {outs, normalised, statistics};
}

std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>, std::vector<at::Tensor>, std::vector<at::Tensor>>
relu_conv_bn_backward(at::TensorList grads, at::TensorList xs, at::TensorList weights, at::IntArrayRef counts,
                      at::TensorList scales, at::TensorList normalised, at::TensorList statistics, double eps,
                      bool batch_statistics, const c10::List<bool>& need_xs, bool need_weights, int64_t sync) {
  const Layers layers(xs, weights, counts, batch_statistics, eps);
  TORCH_CHECK(grads.size() == xs.size() && normalised.size() == xs.size() && statistics.size() == xs.size() &&
                  need_xs.size() == xs.size(),
              "relu_conv_bn_backward: a gradient, xhat and statistics of each layer");
  const auto scale = doubles(scales, layers);
  std::vector<at::Tensor> grad_xs, grad_weights, of_scales, of_shifts, grad_scales, grad_shifts;
  for (std::size_t i = 0; i < xs.size(); ++i) {
    const LayerPlan& p = layers.plans[i];
    TORCH_CHECK(grads[i].sizes() == normalised[i].sizes() && grads[i].is_contiguous(at::MemoryFormat::ChannelsLast) &&
                    normalised[i].is_contiguous(at::MemoryFormat::ChannelsLast),
                "relu_conv_bn_backward: grad and xhat must be of one shape, in channels_last memory");
    grad_xs.push_back(need_xs.get(i) ? channels_last(p.N, p.C, p.H, p.W, xs[i].options())
                                     : at::empty({0}, xs[i].options()));
    if (scale.empty() || !need_weights) continue;
    of_scales.push_back(at::empty({p.D}, xs[i].options().dtype(at::kDouble)));
    of_shifts.push_back(at::empty({p.D}, xs[i].options().dtype(at::kDouble)));
  }
  for (const at::Tensor& w : weights) {
    if (need_weights) grad_weights.push_back(at::empty(w.sizes(), w.options()));
  }
  const auto call = [&]<typename T>(void (*run)(const LayerPlan*, const LayerBackward<T>*, int, int64_t)) {
    const auto matrices = pointers<T>(weights);
    const auto to = mutable_pointers<T>(grad_weights);
    std::vector<LayerBackward<T>> calls;
    for (std::size_t i = 0; i < xs.size(); ++i) {
      const std::size_t first = layers.first_weight[i];
      calls.push_back({grads[i].const_data_ptr<T>(), xs[i].const_data_ptr<T>(), matrices.data() + first,
                       normalised[i].const_data_ptr<T>(), statistics[i].const_data_ptr<double>() + layers.plans[i].D,
                       data_of(scale, i), need_xs.get(i) ? grad_xs[i].mutable_data_ptr<T>() : nullptr,
                       need_weights ? to.data() + first : nullptr,
                       of_scales.empty() ? nullptr : of_scales[i].mutable_data_ptr<double>(),
                       of_shifts.empty() ? nullptr : of_shifts[i].mutable_data_ptr<double>()});
    }
    run(layers.plans.data(), calls.data(), layers.count(), batch_statistics ? sync : 0);
  };
  const LayerKernels& of = kernels_for(layers.plans[0], xs[0]);
  if (xs[0].scalar_type() == at::kDouble) {
    call(of.backward_double);
  } else {
    call(of.backward_float);
  }
  for (std::size_t i = 0; i < of_scales.size(); ++i) {
    grad_scales.push_back(of_scales[i].to(scales[i].scalar_type()));
    grad_shifts.push_back(of_shifts[i].to(scales[i].scalar_type()));
  }
  return {grad_xs, grad_weights, grad_scales, grad_shifts};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) {
  m.impl("relu_conv_bn", &relu_conv_bn);
  m.impl("relu_conv_bn_backward", &relu_conv_bn_backward);
}

}  // namespace fastdarts
