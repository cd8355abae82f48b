// Backward of the fused cell: the order of its stages, and stage (7) of mixed_cell_kernels.cpp.
#pragma once

#include "mixed_cell_backward_convolutions.h"

namespace fastdarts::ISA {
namespace {

// All gradients of a cell, node by node.
template <typename T, int G>
class Backward : BackwardConvolutions<T, G> {
  using Base = BackwardConvolutions<T, G>;
  using Base::L, Base::p, Base::c, Base::width, Base::pixels, Base::image;
  using Base::node_numbers, Base::grads, Base::unshuffled, Base::state_blocks, Base::grad_blocks, Base::dstate_blocks;
  using typename Base::V;

 public:
  Backward(const CellPlan& plan, const CellBackward<T>& call) : Base(plan, call) {}

  void run() {
    this->pack_all(c.weights, true, this->packed);
    lay_out();
    for (int node = p.nodes - 1; node >= 0; --node) {
      complete(node);
      int begin = 0, end = 0;
      for (int i = 0; i < p.num_edges; ++i) {
        if (p.edges[i].node < node) begin = i + 1;
        if (p.edges[i].node <= node) end = i + 1;
      }
      for (int next; begin < end; begin = next) {
        next = smaller(begin + p.edges_at_once, end);
        this->find_sums(begin, next);
        this->convolutions(begin, next);
      }
    }
    for (int s = 0; s < p.inputs && c.grad_inputs != nullptr; ++s) {
      const Timed timed(Stage::finish);
      for_each(p.blocks, [&](int64_t block) { finish_block(s, block); });
    }
  }

 private:
  void lay_out() {
    const Timed timed(Stage::pack);
    if (!this->in_blocks()) {  // edges add to the states' gradients themselves: those begin with the output's
      for_each(p.nodes * p.N, [&](int64_t i) { split(static_cast<int>(i / p.N), i % p.N); });
    }
    for (int s = 0; s < p.inputs && c.grad_inputs != nullptr; ++s) clear(c.grad_inputs[s], p.N * p.H * p.W * p.C);
    if (!this->in_blocks()) return;
    const int states = p.inputs + p.nodes;
    for_each(states * p.blocks, [&](int64_t i) { keep_block(static_cast<int>(i % states), i / states); });
  }

  // The node's channels of image n of the output's gradient.
  void split(int node, int64_t n) {
    const T* from = c.grad + (n * pixels * p.nodes + node) * p.C;
    T* to = grads + node * node_numbers + n * pixels * p.C;
    copy_pixels(from, p.nodes * p.C, pixels, p.C, to, p.C);
  }

  // A state that feeds edges, in block layout; nothing added to its gradient yet.
  void keep_block(int s, int64_t block) const {
    if (s >= p.inputs && p.state[s - p.inputs] < 0) return;
    const int64_t n = this->height(s) * this->columns(s);
    this->gather(this->state(s), n, block, this->channels(0), state_blocks + this->place_of(s, block));
    clear(dstate_blocks + this->place_of(s, block), n * width);
  }

  // A node's gradient, complete: its channels in the inputs' order, in block layout.
  void lay_out_gradient(int node, int64_t block) const {
    for (int64_t n = block * G; n < block * G + this->images_in(block) && p.shuffled != nullptr; ++n) {
      const int64_t at = node * node_numbers + n * pixels * p.C;
      permute(grads + at, p.shuffled, pixels, p.C, unshuffled + at);
    }
    if (this->in_blocks()) {
      this->gather(this->grad_node(node), pixels, block, this->channels(0),
                   grad_blocks + (node * p.blocks + block) * image);
    }
  }

  // --------------------------------------------------------------------------------- (7) pools, skips, bypass

  // A node's gradient, once all edges that leave its state are through: block by block, while it is in the caches.
  void complete(int node) {
    const Timed timed(Stage::finish);
    for_each(p.blocks, [&](int64_t block) {
      for (int64_t n = block * G; n < block * G + this->images_in(block) && this->in_blocks(); ++n) split(node, n);
      if (p.state[node] >= 0) finish_block(p.inputs + node, block);
      if (!p.direct) lay_out_gradient(node, block);
    });
  }

  // What edges that leave state s do besides convolutions.
  void finish_block(int s, int64_t block) {
    const int64_t h = this->height(s), w = this->columns(s), numbers = h * w * width;
    const bool mine = !p.direct && !this->in_blocks();
    const Scratch<T> dmax(image), davg(image), buffer(mine ? numbers : 0), x_buffer(this->buffer_size(s)),
        g_buffer(this->buffer_size(p.inputs));
    const Scratch<T> factor(3 * width);
    const Scratch<double> of_pools(4 * width);  // of the maximum and the average: q and c (see use_sums), over edges
    T* dx = mine ? static_cast<T*>(buffer) : this->dstate_of(s, block);
    bool begun = false, maxima = false, averages = false;
    int stride = 1;
    const auto pooled = [&](bool& used, T* to) {
      if (!used) clear(to, image);
      used = true;
      return to;
    };
    for (int i = 0; i < p.num_edges; ++i) {
      const MixedEdge& e = p.edges[i];
      if (e.source != s) continue;
      if (!begun) {
        if (mine) clear(dx, numbers);
        clear<double>(of_pools, 4 * width);
        begun = true;
        stride = e.stride;
      }
      const T* g = this->gradient_of(e.node, block, i, g_buffer);
      const auto weighted = [&](int column, T* to) {
        this->weights_of(i, column, block, factor);
        scaled_sum(g, factor, to);
      };
      if (e.max_pool >= 0) {
        pool_gradient(this->factors_of(i, e.max_pool, block, factor), g, of_pools, pooled(maxima, dmax));
      }
      if (e.avg_pool >= 0) {
        pool_gradient(this->factors_of(i, e.avg_pool, block, factor), g, of_pools + 2 * width, pooled(averages, davg));
      }
      if (e.plain_max >= 0) weighted(e.plain_max, pooled(maxima, dmax));
      if (e.plain_avg >= 0) weighted(e.plain_avg, pooled(averages, davg));
      if (e.skip >= 0 && e.stride == 1) weighted(e.skip, dx);
      if (p.shared && !last_of(s, i)) continue;  // pools of the same channels are differentiated at once
      const T* x = this->block_of(s, block, i, x_buffer);
      if (maxima) {
        finish_pool(true, s, stride, block, x, of_pools, pool_bn(s, i, true), dmax);
        max_pool_transposed(x, static_cast<const T*>(dmax), p.Ho, p.Wo, h, w, width, stride, 3, 1, dx);
      }
      if (averages) {
        finish_pool(false, s, stride, block, x, of_pools + 2 * width, pool_bn(s, i, false), davg);
        avg_pool_transposed(static_cast<const T*>(davg), p.Ho, p.Wo, h, w, width, stride, dx);
      }
      if (!p.direct) this->scatter_add(dx, h * w, block, this->channels(i), this->grad_state(s));
      begun = maxima = averages = false;
    }
    if (p.k > 1) {
      for (int64_t n = block * G; n < block * G + this->images_in(block); ++n) pass_back(s, n);
    }
  }

  // The BN of a pool of state s that has edge's channels; -1 where there is none.
  int pool_bn(int s, int edge, bool max) const {
    for (int i = 0; i < p.num_edges; ++i) {
      const int bn = max ? p.edges[i].max_bn : p.edges[i].avg_bn;
      if (p.edges[i].source == s && (p.shared || i == edge) && bn >= 0) return bn;
    }
    return -1;
  }

  bool last_of(int s, int edge) const {
    for (int i = edge + 1; i < p.num_edges; ++i) {
      if (p.edges[i].source == s) return false;
    }
    return true;
  }

  void scaled_sum(const T* g, const T* factor, T* to) const {
    for (int64_t i = 0; i < width; i += L) {
      const V a = load(factor + i);
      for (int64_t q = i; q < image; q += width) store(to + q, load(to + q) + a * load(g + q));
    }
  }

  // An edge's own part of a pool's gradient, a * g + q * pool + c: a * g to `to`, q and c to `rest`.
  void pool_gradient(const T* factor, const T* g, double* rest, T* to) const {
    for (int64_t i = 0; i < width; i += L) {
      const V a = load(factor + i);
      for (int64_t q = i; q < image; q += width) store(to + q, load(to + q) + a * load(g + q));
    }
    for (int64_t i = 0; i < 2 * width; ++i) rest[i] += static_cast<double>(factor[width + i]);
  }

  // The part common to all edges: to += q * pool + c.
  void finish_pool(bool max, int s, int stride, int64_t block, const T* x, const double* rest, int bn, T* to) const {
    if (bn < 0 || !p.batch_statistics) return;
    const Scratch<T> line(this->columns(s) * width), pooled(p.Wo * width), start(width), factor(3 * width);
    this->pool_start(bn, start);
    clear<T>(factor, width);
    for (int64_t i = 0; i < 2 * width; ++i) factor[width + i] = static_cast<T>(rest[i]);
    for (int64_t r = 0; r < p.Ho; ++r) {
      this->pool(max, x, s, stride, r, start, line, pooled);
      for (int64_t i = 0; i < width; i += L) {
        const V q = load(factor + width + i), constant = load(factor + 2 * width + i);
        for (int64_t at = i; at < p.Wo * width; at += width) {
          T* into = to + r * p.Wo * width + at;
          store(into, load(into) + (q * load(pooled + at) + constant));
        }
      }
    }
    this->hide_missing(block, pixels, to);
  }

  // The gradient of the bypassed channels, of image n.
  void pass_back(int s, int64_t n) {
    const int64_t h = this->height(s), w = this->columns(s);
    const Scratch<T> factor(p.C);
    T* dx = this->grad_state(s) + n * h * w * p.C;
    const T* x = this->state(s) + n * h * w * p.C;
    for (int i = 0; i < p.num_edges; ++i) {
      const MixedEdge& e = p.edges[i];
      if (e.source != s) continue;
      this->passing(i, static_cast<T>(p.edges_per_image ? c.edges[i * p.N + n] : this->beta(i)), factor);
      for (int64_t r = 0; r < p.Ho; ++r) {
        const T* g = this->grad_node(e.node) + (n * p.Ho + r) * p.Wo * p.C;
        if (e.stride == 1) {
          add_scaled<T>(factor, g, p.Wo, p.C, dx + r * w * p.C);
          continue;
        }
        for (int64_t q = 0; q < p.Wo; ++q) {
          const int64_t at = (2 * r * w + 2 * q) * p.C, places[] = {at, at + p.C, at + w * p.C, at + (w + 1) * p.C};
          for (int64_t ch = 0; ch < p.C; ++ch) {
            int best = 0;
            for (int j = 1; j < 4; ++j) best = x[places[j] + ch] > x[places[best] + ch] ? j : best;
            dx[places[best] + ch] += factor[ch] * g[q * p.C + ch];
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace fastdarts::ISA
