// The mixed edges of a cell as one op. fastdarts/ops/mixed_cell.py documents the arguments and has the definition,
// which this must equal. This file converts a call's graph to a plan (mixed_cell.h), lays out memory and calls the
// kernels of the chosen instruction set.
#include "mixed_cell.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/irange.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "../mixed_cell_saved.h"
#include "isa.h"
#include "tensors.h"

namespace fastdarts {
namespace {

const CellKernels& kernels_for(int64_t pixel_bytes) {
  static constexpr const CellKernels* tables[] = FASTDARTS_TABLES(cell_kernels);
  return kernels(tables, isa_for(pixel_bytes));
}

// As doubles on the CPU, contiguous.
at::Tensor doubles(const at::Tensor& t) { return t.to(at::kDouble).contiguous(); }

struct Sizes {
  int64_t N, C, H, W;
};

// A CellPlan and the memory that it points to.
struct Plan : CellPlan {
  std::vector<MixedEdge> edge_list;
  std::vector<Unit> unit_list;
  std::vector<int> channel_list, shuffle_list, unshuffle_list;
  std::vector<int64_t> state_list;
  const CellKernels* kernels;
  std::vector<std::pair<int64_t, int64_t>> gaps;  // of `saved`: ranges that nothing is written to

  Plan(at::ArrayRef<int64_t> graph, const Sizes& sizes, int64_t partial_channels, int64_t element_size);
  Plan(const Plan&) = delete;

  void set_channels(const std::optional<at::Tensor>& chosen);
  void set_norms(bool of_batch, double given_eps, int64_t given_sync, const std::optional<at::Tensor>& affine);

 private:
  void add_edge(const int64_t* codes, int64_t count, int source, int node, int stride);
  void add_unit(int column, int kernel, int dilation, int stride, int before);
  void add_dense(int column, int stride, bool halves, int side);

  int64_t weights_ = 0;  // allocated numbers of `weights`
  at::Tensor affine_;    // (2, bns * Cq): scale and shift
};

Plan::Plan(at::ArrayRef<int64_t> graph, const Sizes& sizes, int64_t partial_channels, int64_t element_size)
    : CellPlan{} {
  TORCH_CHECK(graph.size() >= 3, "mixed_cell: graph is too short");
  inputs = static_cast<int>(graph[0]), nodes = static_cast<int>(graph[1]), num_edges = static_cast<int>(graph[2]);
  N = sizes.N, C = sizes.C, H = sizes.H, W = sizes.W, k = partial_channels;
  TORCH_CHECK(inputs > 0 && nodes > 0 && num_edges > 0 && N > 0 && H > 0 && W > 0 && k > 0 && C % k == 0 && C >= k,
              "mixed_cell: sizes do not fit together");
  Cq = C / k;
  kernels = &kernels_for(Cq * element_size);
  lanes = kernels->bytes / element_size;
  images = 1;  // below a whole vector of channels (or four), as many images as fit share it
  while (lanes / (2 * images) >= std::max<int64_t>(Cq, 4)) images *= 2;
  vectors = images > 1 ? 1 : (Cq + lanes - 1) / lanes;
  blocks = (N + images - 1) / images;
  // An edge is up to eight tasks in the backward: as many edges at a time as give each thread one.
  edges_at_once = static_cast<int>((at::get_num_threads() + 7) / std::min<int64_t>(blocks, 8));
  edges_at_once = std::max(edges_at_once, 1);
  direct = k == 1 && images == 1 && Cq % lanes == 0;
  std::size_t at = 3;
  bool strided = false;
  std::vector<bool> feeds(nodes, false);
  for (const auto e : c10::irange(num_edges)) {
    TORCH_CHECK(at + 4 <= graph.size(), "mixed_cell: graph is too short");
    const int64_t source = graph[at], node = graph[at + 1], stride = graph[at + 2], count = graph[at + 3];
    at += 4;
    TORCH_CHECK(0 <= node && node < nodes && 0 <= source && source < inputs + node && (stride == 1 || stride == 2) &&
                    count >= 0 && at + count <= graph.size() && (e == 0 || node >= edge_list.back().node),
                "mixed_cell: edge ", e, " of the graph makes no sense");
    TORCH_CHECK(stride == 1 || source < inputs, "mixed_cell: only edges from inputs stride");
    strided |= stride == 2;
    if (source >= inputs) feeds[source - inputs] = true;
    columns = std::max(columns, static_cast<int>(count));
    add_edge(graph.data() + at, count, static_cast<int>(source), static_cast<int>(node), static_cast<int>(stride));
    at += count;
  }
  for (const MixedEdge& e : edge_list) {
    TORCH_CHECK(e.source >= inputs || e.stride == (strided ? 2 : 1),
                "mixed_cell: the edges from inputs share a stride");
  }
  Ho = strided ? (H + 1) / 2 : H, Wo = strided ? (W + 1) / 2 : W;
  // Saved for backward: y of each convolution, the states that feed edges, the pivots; each aligned to a cache line.
  const auto add = [&](int64_t n) {
    const int64_t begin = saved;
    saved = (begin + n + 15) / 16 * 16;
    gaps.push_back({begin + n, saved});
    return begin;
  };
  const int64_t width = vectors * lanes, rows = images == 1 ? Cq : lanes / images;
  for (Unit& u : unit_list) {
    u.y = add(blocks * Ho * Wo * width);
    u.pack = packed;
    packed += (2 * u.kernel * u.kernel + (u.kernel ? 1 : u.taps) * rows) * width;
  }
  for (const auto node : c10::irange(nodes)) {
    state_list.push_back(feeds[node] ? add(N * Ho * Wo * C) : -1);
  }
  pivots = add(num_bns * Cq);
  num_units = static_cast<int>(unit_list.size());
  edges = edge_list.data(), units = unit_list.data(), state = state_list.data();
}

void Plan::add_edge(const int64_t* codes, int64_t count, int source, int node, int stride) {
  MixedEdge e{source, node, stride, static_cast<int>(unit_list.size()), 0, -1, -1, -1, -1, -1, -1, -1};
  const auto once = [](int& field, int64_t column) {
    TORCH_CHECK(field < 0, "mixed_cell: an edge has one candidate twice");
    field = static_cast<int>(column);
  };
  for (const auto column : c10::irange(count)) {
    const int i = static_cast<int>(column);
    switch (codes[column]) {
      case NONE:
        break;
      case SKIP:
        once(e.skip, column);
        if (stride == 2) add_dense(i, stride, true, 1);
        break;
      case MAX_POOL_3:
        once(e.max_pool, column);
        e.max_bn = num_bns++;
        break;
      case AVG_POOL_3:
        once(e.avg_pool, column);
        e.avg_bn = num_bns++;
        break;
      case PLAIN_AVG_POOL_3:
        once(e.plain_avg, column);
        break;
      case PLAIN_MAX_POOL_3:
        once(e.plain_max, column);
        break;
      case SEP_CONV_3:
      case SEP_CONV_5:
      case SEP_CONV_7: {
        const int kernel = codes[column] == SEP_CONV_3 ? 3 : codes[column] == SEP_CONV_5 ? 5 : 7;
        const int first = static_cast<int>(unit_list.size());
        add_unit(i, kernel, 1, stride, -1);
        add_unit(i, kernel, 1, 1, first);
        break;
      }
      case DIL_CONV_3:
      case DIL_CONV_5:
        add_unit(i, codes[column] == DIL_CONV_3 ? 3 : 5, 2, stride, -1);
        break;
      case CONV_1:
      case CONV_3:
        add_dense(i, stride, false, codes[column] == CONV_1 ? 1 : 3);
        break;
      default:
        TORCH_CHECK(false, "mixed_cell: no candidate has the number ", codes[column]);
    }
  }
  e.end = static_cast<int>(unit_list.size());
  edge_list.push_back(e);
}

void Plan::add_unit(int column, int kernel, int dilation, int stride, int before) {
  Unit u{};
  u.edge = static_cast<int>(edge_list.size()), u.column = column, u.bn = num_bns++;
  u.kernel = kernel, u.dilation = dilation, u.stride = stride, u.before = before, u.after = -1;
  u.depthwise = weights_;
  u.pointwise = weights_ + Cq * kernel * kernel;
  weights_ = u.pointwise + Cq * Cq;
  if (before >= 0) unit_list[before].after = static_cast<int>(unit_list.size());
  unit_list.push_back(u);
}

void Plan::add_dense(int column, int stride, bool halves, int side) {
  TORCH_CHECK(!halves || (Cq % 2 == 0 && H % 2 == 0 && W % 2 == 0), "mixed_cell: FactorizedReduce halves even sizes");
  Unit u{};
  u.edge = static_cast<int>(edge_list.size()), u.column = column, u.bn = num_bns++;
  u.stride = stride, u.halves = halves, u.before = u.after = -1;
  u.taps = halves ? 2 : side * side;
  for (const auto t : c10::irange(u.taps)) {
    u.tap_row[t] = halves ? t : t / side - side / 2;
    u.tap_col[t] = halves ? t : t % side - side / 2;
  }
  u.pointwise = weights_;
  weights_ += halves ? Cq * Cq : Cq * Cq * u.taps;
  unit_list.push_back(u);
}

void Plan::set_channels(const std::optional<at::Tensor>& chosen) {
  shared = !chosen.has_value();
  channel_list.resize(num_edges * Cq);
  if (chosen.has_value()) {
    TORCH_CHECK(chosen->scalar_type() == at::kLong && chosen->numel() == num_edges * Cq,
                "mixed_cell: channels must be int64 (E, C/k)");
    const auto given = chosen->contiguous();
    const int64_t* values = given.const_data_ptr<int64_t>();
    for (const auto i : c10::irange(num_edges * Cq)) {
      TORCH_CHECK_INDEX(0 <= values[i] && values[i] < C, "mixed_cell: channel ", values[i], " of ", C);
      channel_list[i] = static_cast<int>(values[i]);
    }
  } else {
    for (const auto i : c10::irange(num_edges * Cq)) channel_list[i] = static_cast<int>(i % Cq);
  }
  channels = channel_list.data();
  if (shared && k > 1) {
    for (const auto c : c10::irange(C)) shuffle_list.push_back(static_cast<int>(c % Cq * k + c / Cq));
    unshuffle_list.resize(C);
    for (const auto c : c10::irange(C)) unshuffle_list[shuffle_list[c]] = static_cast<int>(c);
    shuffled = shuffle_list.data(), unshuffled = unshuffle_list.data();
  }
}

void Plan::set_norms(bool of_batch, double given_eps, int64_t given_sync, const std::optional<at::Tensor>& affine) {
  batch_statistics = of_batch, eps = given_eps;
  if (affine.has_value()) {
    TORCH_CHECK(affine->numel() == 2 * num_bns * Cq, "mixed_cell: affine must be (2, B * C/k)");
    affine_ = doubles(*affine);
    scale = affine_.const_data_ptr<double>();
    shift = scale + num_bns * Cq;
  }
  if (given_sync == 0 || !of_batch) return;
  sync = given_sync;
  edges_at_once = num_edges;  // one sum over the ranks for all edges that are ready
}

Sizes sizes_of(at::TensorList inputs) {
  TORCH_CHECK(!inputs.empty() && inputs[0].dim() == 4, "mixed_cell: inputs must be (N, C, H, W)");
  const at::Tensor& x = inputs[0];
  for (const at::Tensor& input : inputs) {
    TORCH_CHECK(input.sizes() == x.sizes() && input.scalar_type() == x.scalar_type() &&
                    input.is_contiguous(at::MemoryFormat::ChannelsLast),
                "mixed_cell: inputs must have one shape and dtype, in channels_last memory");
  }
  return {x.size(0), x.size(1), x.size(2), x.size(3)};
}

struct Mix {
  at::Tensor ops, edges;

  Mix(Plan& plan, const at::Tensor& given_ops, const std::optional<at::Tensor>& given_edges) : ops(doubles(given_ops)) {
    TORCH_CHECK(ops.dim() == 2 && ops.size(0) == plan.num_edges && ops.size(1) >= plan.columns,
                "mixed_cell: ops must be (E, K)");
    plan.columns = static_cast<int>(ops.size(1));
    if (!given_edges.has_value()) return;
    edges = doubles(*given_edges);
    plan.edges_per_image = edges.dim() == 2;
    TORCH_CHECK(edges.dim() > 0 && edges.numel() == plan.num_edges * (plan.edges_per_image ? plan.N : 1) &&
                    edges.size(0) == plan.num_edges,
                "mixed_cell: edges must be (E,) or (E, N)");
  }

  const double* ops_data() const { return ops.const_data_ptr<double>(); }
  const double* edges_data() const { return edges.defined() ? edges.const_data_ptr<double>() : nullptr; }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> mixed_cell(
    at::TensorList inputs, const at::Tensor& ops, const std::optional<at::Tensor>& edges, const at::Tensor& weights,
    const std::optional<at::Tensor>& affine, const std::optional<at::Tensor>& running_mean,
    const std::optional<at::Tensor>& running_var, const std::optional<at::Tensor>& channels, at::IntArrayRef graph,
    int64_t partial_channels, double eps, int64_t sync) {
  const auto options = inputs[0].options();
  Plan plan(graph, sizes_of(inputs), partial_channels, options.dtype().itemsize());
  plan.set_channels(channels);
  plan.set_norms(!running_mean.has_value(), eps, sync, affine);
  const Mix mix(plan, ops, edges);
  auto out = channels_last(plan.N, plan.nodes * plan.C, plan.Ho, plan.Wo, options);
  auto statistics = at::empty({2, plan.num_bns * plan.Cq}, options.dtype(at::kDouble));
  if (!plan.batch_statistics) {
    statistics[0].copy_(*running_mean);
    statistics[1].copy_(running_var.value());
  }
  auto saved = from_workspace({plan.saved}, {1}, plan.saved, options);
  const auto flat = weights.contiguous();
  double* mean = statistics.mutable_data_ptr<double>();
  const auto call = [&]<typename T>(void (*run)(const CellPlan&, const CellForward<T>&)) {
    const auto from = pointers<T>(inputs);
    T* kept = saved.mutable_data_ptr<T>();
    for (const auto& [begin, end] : plan.gaps) std::fill(kept + begin, kept + end, T(0));
    run(plan, {from.data(), mix.ops_data(), mix.edges_data(), flat.const_data_ptr<T>(), mean,
               mean + plan.num_bns * plan.Cq, kept, out.mutable_data_ptr<T>()});
  };
  if (options.dtype() == at::kDouble) {
    call(plan.kernels->forward_double);
  } else {
    call(plan.kernels->forward_float);
  }
  return {out, statistics, saved};
}

std::tuple<std::vector<at::Tensor>, at::Tensor, at::Tensor, at::Tensor, at::Tensor> mixed_cell_backward(
    const at::Tensor& grad, at::TensorList inputs, const at::Tensor& ops, const std::optional<at::Tensor>& edges,
    const at::Tensor& weights, const std::optional<at::Tensor>& affine, const at::Tensor& statistics,
    const at::Tensor& saved, const std::optional<at::Tensor>& channels, at::IntArrayRef graph, int64_t partial_channels,
    double eps, bool batch_statistics, bool need_inputs, bool need_ops, bool need_weights, int64_t sync) {
  const auto options = inputs[0].options();
  Plan plan(graph, sizes_of(inputs), partial_channels, options.dtype().itemsize());
  plan.set_channels(channels);
  plan.set_norms(batch_statistics, eps, sync, affine);
  TORCH_CHECK(saved.numel() == plan.saved, "mixed_cell_backward: saved was laid out for another instruction set");
  TORCH_CHECK(grad.is_contiguous(at::MemoryFormat::ChannelsLast), "mixed_cell_backward: grad must be in channels_last");
  const Mix mix(plan, ops, edges);
  std::vector<at::Tensor> grad_inputs;
  if (need_inputs) {
    for (int i = 0; i < plan.inputs; ++i) grad_inputs.push_back(channels_last(plan.N, plan.C, plan.H, plan.W, options));
  }
  auto grad_ops = at::zeros(mix.ops.sizes(), mix.ops.options());
  auto grad_edges = at::zeros({plan.num_edges}, mix.ops.options());
  auto grad_weights = at::empty({need_weights ? weights.numel() : 0}, options);
  const bool learn_affine = need_weights && affine.has_value();
  auto grad_affine = at::zeros({learn_affine ? affine->numel() : 0}, mix.ops.options());
  double* grad_scale = learn_affine ? grad_affine.mutable_data_ptr<double>() : nullptr;
  double* grad_shift = learn_affine ? grad_scale + plan.num_bns * plan.Cq : nullptr;
  const auto flat = weights.contiguous();
  const double* mean = statistics.const_data_ptr<double>();
  const auto call = [&]<typename T>(void (*run)(const CellPlan&, const CellBackward<T>&)) {
    const auto from = pointers<T>(inputs);
    const auto to = mutable_pointers<T>(grad_inputs);
    run(plan,
        {from.data(), mix.ops_data(), mix.edges_data(), flat.const_data_ptr<T>(), mean, mean + plan.num_bns * plan.Cq,
         saved.const_data_ptr<T>(), grad.const_data_ptr<T>(), need_inputs ? to.data() : nullptr, need_ops,
         grad_ops.mutable_data_ptr<double>(), grad_edges.mutable_data_ptr<double>(), grad_scale, grad_shift,
         need_weights ? grad_weights.mutable_data_ptr<T>() : nullptr});
  };
  if (options.dtype() == at::kDouble) {
    call(plan.kernels->backward_double);
  } else {
    call(plan.kernels->backward_float);
  }
  const auto mine = [&](const at::Tensor& grad_of_mix) {
    return need_ops ? grad_of_mix.to(ops.scalar_type()) : at::empty({0}, ops.options());
  };
  auto of_affine = learn_affine ? grad_affine.to(affine->scalar_type()).view(affine->sizes()) : at::empty({0}, options);
  return {grad_inputs, mine(grad_ops), mine(grad_edges), grad_weights, of_affine};
}

}  // namespace

int64_t mixed_cell_saved(const std::vector<int64_t>& graph, const std::vector<int64_t>& shape, int64_t partial_channels,
                         int64_t element_size) {
  TORCH_CHECK(shape.size() == 4, "mixed_cell_saved: shape is (N, C, H, W)");
  return Plan(graph, {shape[0], shape[1], shape[2], shape[3]}, partial_channels, element_size).saved;
}

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) {
  m.impl("mixed_cell", &mixed_cell);
  m.impl("mixed_cell_backward", &mixed_cell_backward);
}

}  // namespace fastdarts
