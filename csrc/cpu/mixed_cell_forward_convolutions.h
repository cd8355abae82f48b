// Forward of the fused cell's convolutions, stages (1) and (2) of mixed_cell_kernels.cpp.
#pragma once

#include "mixed_cell_layout.h"

namespace fastdarts::ISA {
namespace {

// Inputs of both parts of the forward, and y of all convolutions with the statistics of their BNs and of the pools'.
template <typename T, int G>
class ForwardConvolutions : protected Cell<T, G> {
  using Base = Cell<T, G>;

 protected:
  using Base::p, Base::width, Base::pixels, Base::image, Base::tile_rows;

  ForwardConvolutions(const CellPlan& plan, const CellForward<T>& call)
      : Base(plan),
        c(call),
        pivots(call.saved + plan.pivots),
        packed(static_cast<std::size_t>(plan.packed)),
        starts(static_cast<std::size_t>(plan.num_bns * width)),
        by_source(static_cast<std::size_t>(plan.num_edges)),
        state_blocks(static_cast<std::size_t>(this->all_states())),
        sums(static_cast<std::size_t>(plan.num_bns * plan.blocks * 2 * width)),
        middle_factors(static_cast<std::size_t>(plan.num_units * 2 * width)) {
    int n = 0;
    for (int s = 0; s < plan.inputs + plan.nodes; ++s) {
      for (int i = 0; i < plan.num_edges; ++i) {
        if (plan.edges[i].source == s) by_source[n++] = i;
      }
    }
  }

  const CellForward<T>& c;
  T* const pivots;                // (bns, Cq)
  const Scratch<T> packed;        // all units' matrices
  const Scratch<T> starts;        // (bns, width): minus the pivot, in each lane
  const Scratch<int> by_source;   // (E,): the edges in the order of their sources
  const Scratch<T> state_blocks;  // all states in block layout, where that is not their own

  const T* state(int s) const { return s < p.inputs ? c.inputs[s] : c.saved + p.state[s - p.inputs]; }

  void keep_block(int s, int64_t block) const {
    if (!this->in_blocks()) return;
    this->gather(state(s), this->height(s) * this->columns(s), block, this->channels(0),
                 state_blocks + this->place_of(s, block));
  }
  const T* block_of(int s, int64_t block, int edge, T* buffer) const {
    return Base::block_of(state(s), state_blocks, s, block, edge, buffer);
  }

  // Edges `begin` .. `end` of those in the order of their sources.
  void convolutions(int begin, int end) {
    const int count = end - begin;
    for (const bool second : ORDER) {
      const Timed timed(second ? Stage::second_halves : Stage::first_halves);
      if (second) form_middle_factors(begin, end);
      if (p.batch_statistics) find_pivots(begin, end, second);
      for_each_bn(begin, end, second, [&](int bn) { begin_at_pivot(bn); });
      const auto edge_of = [&](int64_t task) { return by_source[begin + task % count]; };
      if (second) {
        for_each_backwards(count * p.blocks, [&](int64_t task) { second_halves(edge_of(task), task / count); });
      } else {
        for_each(count * p.blocks, [&](int64_t task) { first_halves(edge_of(task), task / count); });
      }
      if (!p.batch_statistics) continue;
      for_each_bn(begin, end, second, [&](int bn) { merge(bn); });
      if (p.sync != 0) merge_ranks(begin, end, second);
      for (int i = begin; i < end && !second; ++i) share_pools(by_source[i]);
    }
  }

 private:
  const Scratch<double> sums;       // (bns, blocks, 2, width): of a block's numbers and of their squares
  const Scratch<T> middle_factors;  // (units, 2, width): scale and shift of the first halves' normalisation

  double* sums_of(int bn, int64_t block) const { return sums + (bn * p.blocks + block) * 2 * width; }

  // The BNs of first or second halves; first halves bring the pools, of which those of the same channels count once.
  template <typename Body>
  void for_each_bn(int begin, int end, bool second, Body&& body) {
    for (int i = begin; i < end; ++i) {
      const int edge = by_source[i];
      const MixedEdge& e = p.edges[edge];
      for (int u = e.begin; u < e.end; ++u) {
        if ((p.units[u].before >= 0) == second) body(p.units[u].bn);
      }
      for (const bool max : BOTH) {
        if (!second && pools_itself(edge, max)) body(max ? e.max_bn : e.avg_bn);
      }
    }
  }

  void find_pivots(int begin, int end, bool second) {
    const Scratch<int> units(p.num_units);
    int n = 0;
    for (int i = begin; i < end; ++i) {
      const MixedEdge& e = p.edges[by_source[i]];
      for (int u = e.begin; u < e.end; ++u) {
        if ((p.units[u].before >= 0) == second) units[n++] = u;
      }
    }
    for_each(n, [&](int64_t i) { find_pivot(p.units[units[i]]); });
    if (!second) for_each(end - begin, [&](int64_t i) { find_pool_pivots(by_source[begin + i]); });
  }

  void begin_at_pivot(int bn) {
    this->expand(starts + bn * width, [&](int64_t ch) { return -pivots[bn * p.Cq + ch]; });
  }

  // The first edge, by source, whose pool has the same input and the same statistics; -1 for an edge without that pool.
  int pool_like(int edge, bool max) const {
    if ((max ? p.edges[edge].max_bn : p.edges[edge].avg_bn) < 0) return -1;
    if (!p.shared || !p.batch_statistics) return edge;
    for (int i = 0;; ++i) {
      const MixedEdge& e = p.edges[by_source[i]];
      if (e.source == p.edges[edge].source && (max ? e.max_bn : e.avg_bn) >= 0) return by_source[i];
    }
  }
  bool pools_itself(int edge, bool max) const { return pool_like(edge, max) == edge; }

  void share_pools(int edge) {
    for (const bool max : BOTH) {
      const int like = pool_like(edge, max);
      if (like < 0 || like == edge) continue;
      const int from = max ? p.edges[like].max_bn : p.edges[like].avg_bn;
      const int to = max ? p.edges[edge].max_bn : p.edges[edge].avg_bn;
      copy(c.mean + from * p.Cq, p.Cq, c.mean + to * p.Cq);
      copy(c.variance + from * p.Cq, p.Cq, c.variance + to * p.Cq);
      copy(pivots + from * p.Cq, p.Cq, pivots + to * p.Cq);
      begin_at_pivot(to);
    }
  }

  // A number close to y's mean: the mean of its first row in the first block.
  void find_pivot(const Unit& u) {
    const MixedEdge& e = p.edges[u.edge];
    const int64_t cols = u.before < 0 ? this->columns(e.source) : p.Wo;
    const int64_t rows = smaller<int64_t>(u.before < 0 ? this->height(e.source) : p.Ho, 5);
    const Scratch<T> x(this->padded(rows, cols)), tile(p.Wo * width), y(p.Wo * width), zero(width);
    const Scratch<double> total(width);
    clear<T>(x, this->padded(rows, cols));
    clear<T>(zero, width);
    clear<double>(total, width);
    const int64_t row = this->padded_row(cols);
    if (u.before < 0) {
      const Scratch<T> buffer(this->buffer_size(e.source));
      this->rectify(block_of(e.source, 0, u.edge, buffer), rows, cols, x);
    } else {
      form_middle(u, 0, rows, x);
    }
    this->convolve(u, x, row, 0, 1, packed + u.pack, zero, tile, y, nullptr);
    this->dot(y, nullptr, p.Wo, total);
    set_pivot(u.bn, total);
  }

  void set_pivot(int bn, const double* total) {
    for (int64_t ch = 0; ch < p.Cq; ++ch) {
      pivots[bn * p.Cq + ch] =
          static_cast<T>(this->channel_sum(total, 0, ch) / static_cast<double>(this->images_in(0) * p.Wo));
    }
  }

  void find_pool_pivots(int edge) {
    const MixedEdge& e = p.edges[edge];
    if (!pools_itself(edge, true) && !pools_itself(edge, false)) return;
    const Scratch<T> buffer(this->buffer_size(e.source)), line(this->columns(e.source) * width), out(p.Wo * width),
        zero(width);
    const Scratch<double> total(width);
    clear<T>(zero, width);
    const T* from = block_of(e.source, 0, edge, buffer);
    for (const bool max : BOTH) {
      if (!pools_itself(edge, max)) continue;
      clear<double>(total, width);
      this->pool(max, from, e.source, e.stride, 0, zero, line, out);
      this->dot(out, nullptr, p.Wo, total);
      set_pivot(max ? e.max_bn : e.avg_bn, total);
    }
  }

  void form_middle_factors(int begin, int end) const {
    for (int i = begin; i < end; ++i) {
      const MixedEdge& e = p.edges[by_source[i]];
      for (int u = e.begin; u < e.end; ++u) {
        T* scale = middle_factors + u * 2 * width;
        if (p.units[u].after >= 0) {
          this->normalisation(p.units[u].bn, c.mean, c.variance, pivots, scale, scale + width);
        }
      }
    }
  }

  // h of a second half's input, `rows` rows of it.
  void form_middle(const Unit& u, int64_t block, int64_t rows, T* padded_image) const {
    const T* scale = middle_factors + u.before * 2 * width;
    this->middle(c.saved + p.units[u.before].y + block * image, scale, scale + width, rows, padded_image);
  }

  void convolve_image(const Unit& u, const T* padded_image, int64_t row, int64_t block, T* tile, T* part) {
    T* y = c.saved + u.y + block * image;
    double* into = sums_of(u.bn, block);
    clear(into, 2 * width);
    for (int64_t r = 0; r < p.Ho; r += tile_rows) {
      const int64_t end = smaller(p.Ho, r + tile_rows);
      this->convolve(u, padded_image, row, r, end, packed + u.pack, starts + u.bn * width, tile, y + r * p.Wo * width,
                     p.batch_statistics ? part : nullptr);
      fold<T>(part, into, 2 * width);
    }
  }

  void first_halves(int edge, int64_t block) {
    const MixedEdge& e = p.edges[edge];
    const int64_t h = this->height(e.source), w = this->columns(e.source), row = this->padded_row(w);
    const Scratch<T> buffer(this->buffer_size(e.source)), line(w * width), tile(tile_rows * p.Wo * width);
    const T* from = block_of(e.source, block, edge, buffer);
    if (e.begin < e.end) {
      const Scratch<T> x(this->padded(h, w)), part(2 * width);
      this->clear_border(x, h, w);
      this->rectify(from, h, w, x);
      clear<T>(part, 2 * width);
      for (int u = e.begin; u < e.end; ++u) {
        if (p.units[u].before < 0) convolve_image(p.units[u], x, row, block, tile, part);
      }
    }
    for (const bool max : BOTH) {
      if (p.batch_statistics && pools_itself(edge, max))
        pool_sums(max, from, e, max ? e.max_bn : e.avg_bn, block, line, tile);
    }
  }

  void pool_sums(bool max, const T* x, const MixedEdge& e, int bn, int64_t block, T* line, T* out) {
    double* into = sums_of(bn, block);
    clear(into, 2 * width);
    for (int64_t r = 0; r < p.Ho; ++r) {
      this->pool(max, x, e.source, e.stride, r, starts + bn * width, line, out);
      this->dot(out, nullptr, p.Wo, into);
      this->dot(out, out, p.Wo, into + width);
    }
  }

  void second_halves(int edge, int64_t block) {
    const MixedEdge& e = p.edges[edge];
    const Scratch<T> x(this->padded(p.Ho, p.Wo)), tile(tile_rows * p.Wo * width), part(2 * width);
    clear<T>(part, 2 * width);
    this->clear_border(x, p.Ho, p.Wo);
    for (int u = e.begin; u < e.end; ++u) {
      if (p.units[u].before < 0) continue;
      form_middle(p.units[u], block, p.Ho, x);
      convolve_image(p.units[u], x, this->padded_row(p.Wo), block, tile, part);
    }
  }

  void merge(int bn) {
    const double m = static_cast<double>(p.N * pixels);
    for (int64_t ch = 0; ch < p.Cq; ++ch) {
      double sum = 0, squares = 0;
      for (int64_t block = 0; block < p.blocks; ++block) {
        sum += this->channel_sum(sums_of(bn, block), block, ch);
        squares += this->channel_sum(sums_of(bn, block) + width, block, ch);
      }
      const double mean = sum / m, variance = squares / m - mean * mean;
      c.mean[bn * p.Cq + ch] = mean + static_cast<double>(pivots[bn * p.Cq + ch]);
      c.variance[bn * p.Cq + ch] = variance < 0 ? 0 : variance;
    }
  }

  // The statistics of the same BNs become those of all ranks; pivots stay this rank's.
  void merge_ranks(int begin, int end, bool second) {
    int64_t n = 0;
    for_each_bn(begin, end, second, [&](int) { n += p.Cq; });
    if (n == 0) return;
    const Scratch<double> mean(n), variance(n);
    int64_t at = 0;
    for_each_bn(begin, end, second, [&](int bn) {
      copy(c.mean + bn * p.Cq, p.Cq, mean + at);
      copy(c.variance + bn * p.Cq, p.Cq, variance + at);
      at += p.Cq;
    });
    merge_over_ranks(p.sync, n, p.N * pixels, mean, variance);
    at = 0;
    for_each_bn(begin, end, second, [&](int bn) {
      copy(mean + at, p.Cq, c.mean + bn * p.Cq);
      copy(variance + at, p.Cq, c.variance + bn * p.Cq);
      at += p.Cq;
    });
  }
};

}  // namespace
}  // namespace fastdarts::ISA
