// Backward of the fused cell: the memory that its stages share, and stage (4) of mixed_cell_kernels.cpp.
#pragma once

#include "mixed_cell_layout.h"

namespace fastdarts::ISA {
namespace {

// Inputs of all stages of the backward, and the sums for each candidate's BN gradient.
template <typename T, int G>
class BackwardSums : protected Cell<T, G> {
  using Base = Cell<T, G>;

 protected:
  using Base::L, Base::p, Base::width, Base::pixels, Base::image;

  BackwardSums(const CellPlan& plan, const CellBackward<T>& call)
      : Base(plan),
        c(call),
        pivots(call.saved + plan.pivots),
        node_numbers(plan.N * plan.Ho * plan.Wo * plan.C),
        grads(static_cast<std::size_t>(plan.nodes * node_numbers)),
        unshuffled(static_cast<std::size_t>(plan.shuffled == nullptr ? 1 : plan.nodes * node_numbers)),
        state_blocks(static_cast<std::size_t>(this->all_states())),
        grad_blocks(static_cast<std::size_t>(this->in_blocks() ? plan.nodes * plan.blocks * image : 0)),
        dstate_blocks(static_cast<std::size_t>(this->all_states())),
        factors(static_cast<std::size_t>(plan.num_edges * plan.columns * 3 * width)),
        slots(plan.columns + 1),
        sums(static_cast<std::size_t>(plan.num_edges * plan.blocks * slots * width)),
        totals(static_cast<std::size_t>(plan.num_edges * slots * plan.Cq)),
        bypassed(static_cast<std::size_t>(plan.num_edges * plan.blocks)) {}

  const CellBackward<T>& c;
  const T* const pivots;           // (bns, Cq)
  const int64_t node_numbers;      // of a node's state
  const Scratch<T> grads;          // (nodes, N, Ho, Wo, C): of the states that nodes are
  const Scratch<T> unshuffled;     // the same with the channels in the order of the inputs'
  const Scratch<T> state_blocks;   // all states in block layout, where that is not their own
  const Scratch<T> grad_blocks;    // likewise all nodes' gradients
  const Scratch<T> dstate_blocks;  // likewise what edges add to the gradients of states
  const Scratch<T> factors;        // (E, columns, 3, width): a, q, c of dL/dy = a * g + q * y + c

  const T* state(int s) const { return s < p.inputs ? c.inputs[s] : c.saved + p.state[s - p.inputs]; }
  T* grad_state(int s) const { return s < p.inputs ? c.grad_inputs[s] : grads + (s - p.inputs) * node_numbers; }
  // A node's gradient, its channels in the order in which the inputs have them.
  const T* grad_node(int node) const { return (p.shuffled == nullptr ? grads : unshuffled) + node * node_numbers; }

  // Of all images: without the weights of single ones.
  double beta(int edge) const { return c.edges == nullptr || p.edges_per_image ? 1 : c.edges[edge]; }
  double weight(int edge, int column) const { return beta(edge) * c.ops[edge * p.columns + column]; }
  T* factors_of(int edge, int column) const { return factors + (edge * p.columns + column) * 3 * width; }

  // The same for a block, whose images may have weights of their own; `buffer` holds 3 * width numbers.
  const T* factors_of(int edge, int column, int64_t block, T* buffer) const {
    const T* common = factors_of(edge, column);
    if (!p.edges_per_image) return common;
    copy(common, 3 * width, buffer);
    this->weigh_images(c.edges, edge, block, 1, buffer);
    return buffer;
  }
  // A candidate's weight in each lane of a block.
  void weights_of(int edge, int column, int64_t block, T* to) const {
    for (int64_t i = 0; i < width; ++i) to[i] = static_cast<T>(weight(edge, column));
    if (p.edges_per_image) this->weigh_images(c.edges, edge, block, 1, to);
  }

  const T* block_of(int s, int64_t block, int edge, T* buffer) const {
    return Base::block_of(state(s), state_blocks, s, block, edge, buffer);
  }
  // A node's gradient as block_of gives its state.
  const T* gradient_of(int node, int64_t block, int edge, T* buffer) const {
    return Base::block_of(grad_node(node), grad_blocks - p.inputs * this->size_of(0), p.inputs + node, block, edge,
                          buffer);
  }

  // Where edges add to the gradient of what they read of a state, if that has a place in block layout.
  T* dstate_of(int s, int64_t block) const {
    return p.direct ? grad_state(s) + block * this->height(s) * this->columns(s) * width
                    : dstate_blocks + this->place_of(s, block);
  }

  // Zero in the lanes of a last block's missing images, over n pixels.
  void hide_missing(int64_t block, int64_t n, T* numbers) const {
    const int64_t present = this->images_in(block);
    if (present == G) return;
    const int64_t from = this->lane(static_cast<int>(present), 0);
    for (int64_t q = 0; q < n; ++q) clear(numbers + q * width + from, L - from);
  }

  // value for channels that bypass an edge's candidates, 0 for the others; (C,).
  void passing(int edge, T value, T* to) const {
    for (int64_t i = 0; i < p.C; ++i) to[i] = value;
    for (int64_t i = 0; i < p.Cq; ++i) to[this->channels(edge)[i]] = 0;
  }

  void pool_start(int bn, T* start) const {
    this->expand(start, [&](int64_t ch) { return bn < 0 ? T(0) : -pivots[bn * p.Cq + ch]; });
  }

  // As stored: the mean minus the pivot.
  double mean_of(int bn, int64_t ch) const {
    return c.mean[bn * p.Cq + ch] - static_cast<double>(pivots[bn * p.Cq + ch]);
  }

  void set_factors(T* to, const double* a, const double* q, const double* constant) const {
    this->expand(to, [&](int64_t ch) { return a[ch]; });
    this->expand(to + width, [&](int64_t ch) { return q[ch]; });
    this->expand(to + 2 * width, [&](int64_t ch) { return constant[ch]; });
  }

  // The gradients of ops and edges, and `factors`, of edges `begin` .. `end`.
  void find_sums(int begin, int end) {
    const Timed timed(Stage::sums);
    const int count = end - begin;
    for_each(count * p.blocks, [&](int64_t i) { take_sums(begin + static_cast<int>(i % count), i / count); });
    for_each(count, [&](int64_t i) { add_up(begin + static_cast<int>(i)); });
    int norms = 0;
    for (int i = begin; i < end; ++i) for_each_norm(p.edges[i], [&](int, int) { ++norms; });
    const int64_t ranks = norms == 0 ? 1 : over_ranks(count * slots * p.Cq, totals_of(begin, 0));
    for_each(count, [&](int64_t i) { use_sums(begin + static_cast<int>(i), ranks); });
  }

  // A channel's part of the gradients of a BN's affine parameters.
  void give_affine(int bn, int64_t ch, double of_scale, double of_shift) const {
    if (c.grad_scale == nullptr) return;
    c.grad_scale[bn * p.Cq + ch] = of_scale;
    c.grad_shift[bn * p.Cq + ch] = of_shift;
  }

  // Sums become those of all ranks, where these share the statistics; returns how many ranks do.
  int64_t over_ranks(int64_t n, double* numbers) const { return p.sync == 0 ? 1 : sum_over_ranks(p.sync, n, numbers); }

 private:
  const int64_t slots;             // of `sums`: the gradient's own, then one for each column
  const Scratch<double> sums;      // (E, blocks, slots, width): of g, and of g times each candidate's output
  const Scratch<double> totals;    // (E, slots, Cq): of g, and of g times each normalised candidate's xhat
  const Scratch<double> bypassed;  // (E, blocks): sum of g times the bypassed channels

  bool wants_edges() const { return c.need_ops && c.edges != nullptr && !p.edges_per_image; }

  double* sums_of(int edge, int64_t block, int slot) const {
    return sums + ((edge * p.blocks + block) * slots + slot) * width;
  }
  double* totals_of(int edge, int slot) const { return totals + (edge * slots + slot) * p.Cq; }

  // An edge's candidates that end in a BN: body(column, bn).
  template <typename Body>
  void for_each_norm(const MixedEdge& e, Body&& body) const {
    for (int i = e.begin; i < e.end; ++i) {
      if (p.units[i].after < 0) body(p.units[i].column, p.units[i].bn);
    }
    if (e.max_pool >= 0) body(e.max_pool, e.max_bn);
    if (e.avg_pool >= 0) body(e.avg_pool, e.avg_bn);
  }

  bool normalised(const MixedEdge& e) const { return e.begin < e.end || e.max_pool >= 0 || e.avg_pool >= 0; }

  void take_sums(int edge, int64_t block) {
    const MixedEdge& e = p.edges[edge];
    const Scratch<T> g_buffer(this->buffer_size(p.inputs)), x_buffer(this->buffer_size(e.source)),
        line(this->columns(e.source) * width), pooled(p.Wo * width), start(width);
    const T* g = gradient_of(e.node, block, edge, g_buffer);
    const T* x = block_of(e.source, block, edge, x_buffer);
    clear(sums_of(edge, block, 0), slots * width);
    bypassed[edge * p.blocks + block] = wants_edges() && p.k > 1 ? bypass_sum(edge, block) : 0;
    if (!c.need_ops && !normalised(e)) return;
    this->dot(g, nullptr, pixels, sums_of(edge, block, 0));
    for (int i = e.begin; i < e.end; ++i) {
      const Unit& u = p.units[i];
      if (u.after < 0) this->dot(g, c.saved + u.y + block * image, pixels, sums_of(edge, block, 1 + u.column));
    }
    if (e.skip >= 0 && e.stride == 1 && c.need_ops) this->dot(g, x, pixels, sums_of(edge, block, 1 + e.skip));
    const auto pool = [&](bool max, int column, int bn) {
      if (column < 0) return;
      pool_start(bn, start);
      for (int64_t r = 0; r < p.Ho; ++r) {
        this->pool(max, x, e.source, e.stride, r, start, line, pooled);
        this->dot(g + r * p.Wo * width, pooled, p.Wo, sums_of(edge, block, 1 + column));
      }
    };
    pool(true, e.max_pool, e.max_bn);
    pool(false, e.avg_pool, e.avg_bn);
    if (c.need_ops) pool(true, e.plain_max, -1);
    if (c.need_ops) pool(false, e.plain_avg, -1);
    if (p.edges_per_image) this->weigh_images(c.edges, edge, block, slots, sums_of(edge, block, 0));
  }

  // Sum over the channels that pass by of g times the (max-pooled) state.
  double bypass_sum(int edge, int64_t block) const {
    const MixedEdge& e = p.edges[edge];
    const Scratch<T> maxima(p.Wo * p.C), sums_of_row(p.C), mask(p.C);
    passing(edge, T(1), mask);
    double total = 0;
    for (int64_t n = block * G; n < block * G + this->images_in(block); ++n) {
      const T* x = state(e.source) + n * this->height(e.source) * this->columns(e.source) * p.C;
      for (int64_t r = 0; r < p.Ho; ++r) {
        clear<T>(sums_of_row, p.C);
        add_products<T>(grad_node(e.node) + (n * p.Ho + r) * p.Wo * p.C, this->pass_row(e, x, r, maxima), p.Wo, p.C,
                        sums_of_row);
        for (int64_t i = 0; i < p.C; ++i) total += static_cast<double>(mask[i]) * static_cast<double>(sums_of_row[i]);
      }
    }
    return total;
  }

  // An edge's totals, and the gradients of ops and edges: those of this rank's images.
  void add_up(int edge) {
    const MixedEdge& e = p.edges[edge];
    double of_edge = 0;
    for (int64_t block = 0; block < p.blocks; ++block) of_edge += bypassed[edge * p.blocks + block];
    const auto give = [&](int column, double grad) {
      c.grad_ops[edge * p.columns + column] = beta(edge) * grad;
      of_edge += c.ops[edge * p.columns + column] * grad;
    };
    double* s0 = totals_of(edge, 0);
    clear(s0, slots * p.Cq);
    for (int64_t ch = 0; ch < p.Cq; ++ch) s0[ch] = sum(edge, 0, ch);
    for_each_norm(e, [&](int column, int bn) {
      double* s1 = totals_of(edge, 1 + column);
      double grad = 0;
      for (int64_t ch = 0; ch < p.Cq; ++ch) {
        const double r = this->inverse_std(c.variance, bn, ch);
        s1[ch] = r * (sum(edge, 1 + column, ch) - mean_of(bn, ch) * s0[ch]);
        grad += this->scale_of(bn, ch) * s1[ch] + this->shift_of(bn, ch) * s0[ch];
        give_affine(bn, ch, weight(edge, column) * s1[ch], weight(edge, column) * s0[ch]);
      }
      give(column, grad);
    });
    const auto plain = [&](int column) {
      if (column < 0) return;
      double grad = 0;
      for (int64_t ch = 0; ch < p.Cq; ++ch) grad += sum(edge, 1 + column, ch);
      give(column, grad);
    };
    plain(e.plain_max);
    plain(e.plain_avg);
    if (e.stride == 1) plain(e.skip);
    c.grad_edges[edge] = wants_edges() ? of_edge : 0;
  }

  // The factors of each candidate's dL/dy. With S0 = sum g and S1 = sum g * xhat over the m values of each rank:
  // dL/dy = beta a r (g - S0 / m - xhat S1 / m), times the BN's scale, the means only where the statistics are the
  // batch's. Where images have weights of their own, g is weighted in these sums.
  void use_sums(int edge, int64_t ranks) const {
    const double m = static_cast<double>(p.N * pixels * ranks);
    const double* s0 = totals_of(edge, 0);
    for_each_norm(p.edges[edge], [&](int column, int bn) {
      const Scratch<double> a(p.Cq), q(p.Cq), constant(p.Cq);
      const double* s1 = totals_of(edge, 1 + column);
      for (int64_t ch = 0; ch < p.Cq; ++ch) {
        const double r = this->inverse_std(c.variance, bn, ch), mean = mean_of(bn, ch);
        a[ch] = weight(edge, column) * this->scale_of(bn, ch) * r;
        q[ch] = p.batch_statistics ? -a[ch] * r * s1[ch] / m : 0;
        constant[ch] = p.batch_statistics ? -a[ch] * s0[ch] / m - q[ch] * mean : 0;
      }
      set_factors(factors_of(edge, column), a, q, constant);
    });
  }

  double sum(int edge, int slot, int64_t ch) const {
    double total = 0;
    for (int64_t block = 0; block < p.blocks; ++block)
      total += this->channel_sum(sums_of(edge, block, slot), block, ch);
    return total;
  }
};

}  // namespace
}  // namespace fastdarts::ISA
