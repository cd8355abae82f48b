// Convolutions with BN and ReLUs between them as one op. fastdarts/ops/conv_bn_chain.py documents the arguments and has
// the definition, which this must equal.
#include "conv_bn_chain.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>
#include <utility>
#include <vector>

#include "isa.h"
#include "tensors.h"

namespace fastdarts {
namespace {

const LinkKernels& link_kernels() {
  static constexpr const LinkKernels* tables[] = FASTDARTS_TABLES(link_kernels);
  return kernels(tables);
}

// The plans of all layers; channels_before[i]: channels of all layers before layer i.
struct Chain {
  std::vector<LinkPlan> links;
  std::vector<int64_t> channels_before;
  int64_t channels = 0;

  Chain(const at::Tensor& x, at::TensorList weights, at::TensorList norm_weights, at::TensorList norm_biases,
        at::IntArrayRef strides, bool batch_statistics, double eps, int64_t sync) {
    TORCH_CHECK(x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast),
                "conv_bn_chain: x must be (N, C, H, W) in channels_last memory");
    TORCH_CHECK(!weights.empty() && weights.size() == strides.size() && weights.size() == norm_weights.size() &&
                    weights.size() == norm_biases.size(),
                "conv_bn_chain: as many strides and norms as weights");
    int64_t C = x.size(1), H = x.size(2), W = x.size(3);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const at::Tensor& w = weights[i];
      const int64_t D = w.size(0), s = strides[i];
      TORCH_CHECK(w.is_contiguous() && w.numel() == D * C * 9 && w.scalar_type() == x.scalar_type(),
                  "conv_bn_chain: weights must be contiguous (D, C, 3, 3) of x' dtype");
      for (const at::Tensor& norm : {norm_weights[i], norm_biases[i]}) {
        TORCH_CHECK(norm.is_contiguous() && norm.numel() == D && norm.scalar_type() == x.scalar_type(),
                    "conv_bn_chain: a norm's weight and bias must be contiguous (D,) of x' dtype");
      }
      TORCH_CHECK(s == 1 || s == 2, "conv_bn_chain: strides of 1 or 2");
      const int64_t Ho = (H - 1) / s + 1, Wo = (W - 1) / s + 1;
      links.push_back({x.size(0), H, W, Ho, Wo, C, D, s, batch_statistics, eps, batch_statistics ? sync : 0});
      channels_before.push_back(channels);
      channels += D;
      C = D, H = Ho, W = Wo;
    }
  }
};

// Scale and shift of each channel of all layers.
template <typename T>
struct Affine {
  std::vector<T> scale, shift;

  explicit Affine(const Chain& chain)
      : scale(static_cast<std::size_t>(chain.channels)), shift(static_cast<std::size_t>(chain.channels)) {}

  LinkInput<T> input(const Chain& chain, std::size_t layer, const at::Tensor& x, at::TensorList ys) const {
    if (layer == 0) return {x.const_data_ptr<T>(), nullptr, nullptr};
    const int64_t at = chain.channels_before[layer - 1];
    return {ys[layer - 1].template const_data_ptr<T>(), scale.data() + at, shift.data() + at};
  }
};

std::tuple<std::vector<at::Tensor>, std::vector<at::Tensor>, at::Tensor> conv_bn_chain(
    const at::Tensor& x, at::TensorList weights, at::TensorList norm_weights, at::TensorList norm_biases,
    at::TensorList running_means, at::TensorList running_vars, at::IntArrayRef strides, int64_t outputs, double eps,
    int64_t sync) {
  const bool batch_statistics = running_means.empty();
  const Chain chain(x, weights, norm_weights, norm_biases, strides, batch_statistics, eps, sync);
  TORCH_CHECK(
      running_means.size() == running_vars.size() && (batch_statistics || running_means.size() == weights.size()),
      "conv_bn_chain: running statistics of every layer or of none");
  TORCH_CHECK(1 <= outputs && outputs <= static_cast<int64_t>(weights.size()),
              "conv_bn_chain: outputs must be 1..layers");
  auto statistics = at::empty({3, chain.channels}, x.options().dtype(at::kDouble));
  double* numbers = statistics.mutable_data_ptr<double>();
  std::vector<at::Tensor> ys, outs;
  const auto call = [&]<typename T>(void (*run)(const LinkPlan&, const LinkForward<T>&)) {
    Affine<T> affine(chain);
    for (std::size_t i = 0; i < chain.links.size(); ++i) {
      const LinkPlan& p = chain.links[i];
      const int64_t at = chain.channels_before[i];
      if (!batch_statistics) {
        statistics[0].narrow(0, at, p.D).copy_(running_means[i]);
        statistics[1].narrow(0, at, p.D).copy_(running_vars[i]);
      }
      const bool seen = static_cast<int64_t>(i) >= static_cast<int64_t>(chain.links.size()) - outputs;
      auto y = channels_last(p.N, p.D, p.Ho, p.Wo, x.options());
      if (seen) outs.push_back(channels_last(p.N, p.D, p.Ho, p.Wo, x.options()));
      run(p, {affine.input(chain, i, x, ys), weights[i].const_data_ptr<T>(), norm_weights[i].const_data_ptr<T>(),
              norm_biases[i].const_data_ptr<T>(), numbers + at, numbers + chain.channels + at,
              numbers + 2 * chain.channels + at, y.mutable_data_ptr<T>(), affine.scale.data() + at,
              affine.shift.data() + at, seen ? outs.back().mutable_data_ptr<T>() : nullptr});
      ys.push_back(std::move(y));
    }
  };
  if (x.scalar_type() == at::kDouble) {
    call(link_kernels().forward_double);
  } else {
    call(link_kernels().forward_float);
  }
  return {outs, ys, statistics};
}

std::tuple<at::Tensor, std::vector<at::Tensor>, std::vector<at::Tensor>, std::vector<at::Tensor>>
conv_bn_chain_backward(at::TensorList grads, const at::Tensor& x, at::TensorList weights, at::TensorList norm_weights,
                       at::TensorList norm_biases, at::TensorList ys, const at::Tensor& statistics,
                       at::IntArrayRef strides, double eps, bool batch_statistics, bool need_x, bool need_weights,
                       int64_t sync) {
  const Chain chain(x, weights, norm_weights, norm_biases, strides, batch_statistics, eps, sync);
  const std::size_t layers = chain.links.size(), first = layers - grads.size();
  TORCH_CHECK(!grads.empty() && grads.size() <= layers && ys.size() == layers,
              "conv_bn_chain_backward: one gradient for each output, one y for each layer");
  TORCH_CHECK(
      statistics.is_contiguous() && statistics.numel() == 3 * chain.channels && statistics.scalar_type() == at::kDouble,
      "conv_bn_chain_backward: statistics must be contiguous float64 (3, channels)");
  for (std::size_t i = 0; i < layers; ++i) {
    const LinkPlan& p = chain.links[i];
    TORCH_CHECK(ys[i].numel() == p.N * p.D * p.Ho * p.Wo && ys[i].is_contiguous(at::MemoryFormat::ChannelsLast) &&
                    (i < first || (grads[i - first].sizes() == ys[i].sizes() &&
                                   grads[i - first].is_contiguous(at::MemoryFormat::ChannelsLast))),
                "conv_bn_chain_backward: gradients and ys must be of the layers' shapes, in channels_last memory");
  }
  const double* numbers = statistics.const_data_ptr<double>();
  at::Tensor grad_x = at::empty({0}, x.options());
  std::vector<at::Tensor> grad_weights, grad_norm_weights, grad_norm_biases;
  for (std::size_t i = 0; need_weights && i < layers; ++i) {
    grad_weights.push_back(at::empty(weights[i].sizes(), weights[i].options()));
    grad_norm_weights.push_back(at::empty(norm_weights[i].sizes(), norm_weights[i].options()));
    grad_norm_biases.push_back(at::empty(norm_weights[i].sizes(), norm_weights[i].options()));
  }
  const auto call = [&]<typename T>(auto* run, auto* make_affine) {
    Affine<T> affine(chain);
    for (std::size_t i = 0; i < layers; ++i) {
      const int64_t at = chain.channels_before[i];
      make_affine(chain.links[i].D, eps, norm_weights[i].const_data_ptr<T>(), norm_biases[i].const_data_ptr<T>(),
                  numbers + chain.channels + at, numbers + 2 * chain.channels + at, affine.scale.data() + at,
                  affine.shift.data() + at);
    }
    at::Tensor grad = grads.back(), below;
    for (std::size_t i = layers; i-- > 0; grad = std::exchange(below, {})) {
      const LinkPlan& p = chain.links[i];
      const int64_t at = chain.channels_before[i];
      if (i > 0 || need_x) below = channels_last(p.N, p.C, p.H, p.W, x.options());
      run(p, {affine.input(chain, i, x, ys), weights[i].const_data_ptr<T>(), norm_weights[i].const_data_ptr<T>(),
              numbers + chain.channels + at, numbers + 2 * chain.channels + at, ys[i].const_data_ptr<T>(),
              grad.const_data_ptr<T>(), below.defined() ? below.mutable_data_ptr<T>() : nullptr,
              i > first ? grads[i - first - 1].const_data_ptr<T>() : nullptr,
              need_weights ? grad_weights[i].mutable_data_ptr<T>() : nullptr,
              need_weights ? grad_norm_weights[i].mutable_data_ptr<T>() : nullptr,
              need_weights ? grad_norm_biases[i].mutable_data_ptr<T>() : nullptr});
    }
    if (need_x) grad_x = grad;
  };
  const LinkKernels& k = link_kernels();
  if (x.scalar_type() == at::kDouble) {
    call.operator()<double>(k.backward_double, k.affine_double);
  } else {
    call.operator()<float>(k.backward_float, k.affine_float);
  }
  return {grad_x, grad_weights, grad_norm_weights, grad_norm_biases};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) {
  m.impl("conv_bn_chain", &conv_bn_chain);
  m.impl("conv_bn_chain_backward", &conv_bn_chain_backward);
}

}  // namespace fastdarts
