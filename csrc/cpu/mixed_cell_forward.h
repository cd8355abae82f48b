// Forward of the fused cell, stages (1) to (3) of mixed_cell_kernels.cpp.
#pragma once

#include "mixed_cell_layout.h"

namespace fastdarts::ISA {
namespace {

template <typename T, int G>
class Forward : Cell<T, G> {
  static constexpr int MOST = 12;  // terms of one edge: at most as many as there are candidates
  using Base = Cell<T, G>;
  using Base::L, Base::p, Base::width, Base::pixels, Base::image, Base::tile_rows;
  using typename Base::V;

 public:
  Forward(const CellPlan& plan, const CellForward<T>& call)
      : Base(plan),
        c(call),
        pivots(call.saved + plan.pivots),
        packed(static_cast<std::size_t>(plan.packed)),
        sums(static_cast<std::size_t>(plan.num_bns * plan.blocks * 2 * width)),
        starts(static_cast<std::size_t>(plan.num_bns * width)),
        by_source(static_cast<std::size_t>(plan.num_edges)),
        middle_factors(static_cast<std::size_t>(plan.num_units * 2 * width)),
        factors(static_cast<std::size_t>(plan.num_edges * MOST * width)),
        offsets(static_cast<std::size_t>(plan.num_edges * width)),
        state_blocks(static_cast<std::size_t>(this->all_states())) {
    int n = 0;
    for (int s = 0; s < plan.inputs + plan.nodes; ++s) {
      for (int i = 0; i < plan.num_edges; ++i) {
        if (plan.edges[i].source == s) by_source[n++] = i;
      }
    }
  }

  void run() {
    this->pack_all(c.weights, false, packed);
    if (!p.batch_statistics) {
      for (int64_t i = 0; i < p.num_bns * p.Cq; ++i) pivots[i] = static_cast<T>(c.mean[i]);
    }
    for_each(p.inputs * p.blocks, [&](int64_t i) { keep_block(static_cast<int>(i % p.inputs), i / p.inputs); });
    int begin = 0;
    for (int node = 0; node < p.nodes; ++node) {
      for (int end; begin < p.num_edges && p.edges[by_source[begin]].source < p.inputs + node; begin = end) {
        end = smaller(begin + p.edges_at_once, p.num_edges);
        while (p.edges[by_source[end - 1]].source >= p.inputs + node) --end;
        convolutions(begin, end);
      }
      const Timed timed(Stage::nodes);
      for_each(p.num_edges, [&](int64_t i) {
        if (p.edges[i].node == node) find_factors(static_cast<int>(i));
      });
      for_each(p.blocks, [&](int64_t block) {
        sum_node(node, block);
        if (p.state[node] >= 0) keep_block(p.inputs + node, block);
      });
    }
  }

 private:
  const CellForward<T>& c;
  T* const pivots;                  // (bns, Cq)
  const Scratch<T> packed;          // all units' matrices
  const Scratch<double> sums;       // (bns, blocks, 2, width): of a block's numbers and of their squares
  const Scratch<T> starts;          // (bns, width): minus the pivot, in each lane
  const Scratch<int> by_source;     // (E,): the edges in the order of their sources
  const Scratch<T> middle_factors;  // (units, 2, width): scale and shift of the first halves' normalisation
  const Scratch<T> factors;         // (E, MOST, width): of each term of an edge
  const Scratch<double> offsets;    // (E, width): the constant of an edge
  const Scratch<T> state_blocks;    // all states in block layout, where that is not their own

  const T* state(int s) const { return s < p.inputs ? c.inputs[s] : c.saved + p.state[s - p.inputs]; }

  void keep_block(int s, int64_t block) const {
    if (!this->in_blocks()) return;
    this->gather(state(s), this->height(s) * this->columns(s), block, this->channels(0),
                 state_blocks + this->place_of(s, block));
  }
  const T* block_of(int s, int64_t block, int edge, T* buffer) const {
    return Base::block_of(state(s), state_blocks, s, block, edge, buffer);
  }

  double* sums_of(int bn, int64_t block) const { return sums + (bn * p.blocks + block) * 2 * width; }

  // ----------------------------------------------------------------------------------------------- (1) and (2)

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
      for (int i = begin; i < end && !second; ++i) share_pools(by_source[i]);
    }
  }

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

  // ------------------------------------------------------------------------------------------------- (3) node

  // One term of a node's affine sum: factor[lane] * values[pixel][lane].
  struct Term {
    const T* values;
    const T* factor;
  };

  double beta(int edge) const { return c.edges == nullptr ? 1 : c.edges[edge]; }
  double weight(int edge, int column) const { return column < 0 ? 0 : beta(edge) * c.ops[edge * p.columns + column]; }

  // The factors of an edge's terms and the sum of their constants; terms come in the order that edge_terms has.
  void find_factors(int edge) const {
    const MixedEdge& e = p.edges[edge];
    T* factor = factors + edge * MOST * width;
    double* offset = offsets + edge * width;
    clear(offset, width);
    const auto normalised = [&](int column, int bn) {
      const double a = weight(edge, column);
      for (int64_t ch = 0; ch < p.Cq; ++ch) {
        const double r = this->inverse_std(c.variance, bn, ch);
        const double constant = a * r * (static_cast<double>(pivots[bn * p.Cq + ch]) - c.mean[bn * p.Cq + ch]);
        for (int g = 0; g < G; ++g) offset[this->lane(g, ch)] += constant;
      }
      this->expand(factor, [&](int64_t ch) { return a * this->inverse_std(c.variance, bn, ch); });
      factor += width;
    };
    const auto plain = [&](int column) {
      this->expand(factor, [&](int64_t) { return weight(edge, column); });
      factor += width;
    };
    for (int i = e.begin; i < e.end; ++i) {
      if (p.units[i].after < 0) normalised(p.units[i].column, p.units[i].bn);
    }
    if (e.max_pool >= 0) normalised(e.max_pool, e.max_bn);
    if (e.avg_pool >= 0) normalised(e.avg_pool, e.avg_bn);
    if (e.plain >= 0) plain(e.plain);
    if (e.skip >= 0 && e.stride == 1) plain(e.skip);
  }

  // The terms of an edge over output rows r .. end; returns how many.
  int edge_terms(int edge, int64_t block, int64_t r, int64_t end, const T* x, T* pooled, T* line, const T* zero,
                 Term* terms) const {
    const MixedEdge& e = p.edges[edge];
    const int64_t from = block * image + r * p.Wo * width, n = tile_rows * p.Wo * width;
    int t = 0;
    const auto add = [&](const T* values) {
      terms[t] = {values, factors + (edge * MOST + t) * width};
      ++t;
    };
    const auto pool = [&](bool max, const T* start, T* out) {
      for (int64_t row = r; row < end; ++row) {
        this->pool(max, x, e.source, e.stride, row, start, line, out + (row - r) * p.Wo * width);
      }
      return out;
    };
    for (int i = e.begin; i < e.end; ++i) {
      if (p.units[i].after < 0) add(c.saved + p.units[i].y + from);
    }
    if (e.max_pool >= 0) add(pool(true, starts + e.max_bn * width, pooled));
    if (e.avg_pool >= 0) add(pool(false, starts + e.avg_bn * width, pooled + n));
    if (e.plain >= 0) add(pool(false, zero, pooled + 2 * n));
    if (e.skip >= 0 && e.stride == 1) add(x + r * p.Wo * width);
    return t;
  }

  void sum_node(int node, int64_t block) {
    const int64_t n = tile_rows * p.Wo;
    int edges = 0, first = -1;
    for (int i = 0; i < p.num_edges; ++i) {
      if (p.edges[i].node != node) continue;
      if (first < 0) first = i;
      ++edges;
    }
    const Scratch<T> base(edges * width), acc(n * width), pooled(edges * 3 * n * width), line(p.W * width), zero(width),
        rows(p.direct ? 1 : G * n * p.C), way(p.direct ? 1 : G * n * p.C), buffers(edges * this->buffer_size(0));
    const Scratch<Term> terms(edges * MOST);
    const Scratch<const T*> source(edges);
    clear<T>(zero, width);
    for (int e = 0; e < edges; ++e) {
      source[e] = block_of(p.edges[first + e].source, block, first + e, buffers + e * this->buffer_size(0));
      for (int64_t i = 0; i < width; ++i) {  // edges that process the same channels are summed at once
        double sum = offsets[(first + e) * width + i];
        for (int other = 1; other < edges && p.shared && e == 0; ++other) sum += offsets[(first + other) * width + i];
        base[e * width + i] = static_cast<T>(sum);
      }
    }
    for (int64_t r = 0; r < p.Ho; r += tile_rows) {
      const int64_t end = smaller(p.Ho, r + tile_rows), count = (end - r) * p.Wo;
      if (!p.direct) clear<T>(rows, G * n * p.C);
      for (int from = 0, to; from < edges; from = to) {
        to = p.shared ? edges : from + 1;
        int t = 0;
        for (int e = from; e < to; ++e) {
          t += edge_terms(first + e, block, r, end, source[e], pooled + e * 3 * n * width, line, zero, terms + t);
        }
        affine_sum(terms, t, base + from * width, count, acc);
        if (!p.direct) place(first + from, first + to, block, r, end, acc, way, rows);
      }
      write(node, block, r, end, p.direct ? acc : rows);
    }
  }

  // acc = base + sum of the terms, over n pixels. A few terms at a time: each is read in one stretch.
  void affine_sum(const Term* terms, int count, const T* base, int64_t n, T* acc) const {
    for (int64_t q = 0; q < n; ++q) copy(base, width, acc + q * width);
    int t = 0;
    for (; t + 4 <= count; t += 4) add_terms<4>(terms + t, n, acc);
    for (; t < count; ++t) add_terms<1>(terms + t, n, acc);
  }

  template <int B>
  void add_terms(const Term* terms, int64_t n, T* acc) const {
    for (int64_t i = 0; i < width; i += L) {
      V factor[B];
      const T* values[B];
#pragma GCC unroll 4
      for (int t = 0; t < B; ++t) {
        factor[t] = load(terms[t].factor + i);
        values[t] = terms[t].values + i;
      }
      for (int64_t q = 0; q < n * width; q += width) {
        V sum = load(acc + q + i);
#pragma GCC unroll 4
        for (int t = 0; t < B; ++t) sum += factor[t] * load(values[t] + q);
        store(acc + q + i, sum);
      }
    }
  }

  // Adds what edges `begin` .. `end` (which process the same channels) give to NHWC rows of the node: `acc` where the
  // processed channels land, the weighted (and, under stride 2, max-pooled) state elsewhere. `way` is scratch.
  void place(int begin, int end, int64_t block, int64_t r0, int64_t r1, const T* acc, T* way, T* rows) const {
    const int64_t n = (r1 - r0) * p.Wo;
    const Scratch<T> maxima(p.Wo * p.C), factor(p.C);
    for (int g = 0; g < this->images_in(block); ++g) {
      T* image_rows = rows + g * tile_rows * p.Wo * p.C;
      clear(way, n * p.C);
      if (p.k > 1) {
        for (int e = begin; e < end; ++e) bypass(e, block * G + g, r0, r1, maxima, factor, way);
      }
      const int* from = this->channels(begin);
      if (p.shared) {
        copy_pixels(acc + this->lane(g, 0), width, n, p.Cq, way, p.C);
      } else {
        for (int64_t q = 0; q < n; ++q) {
          for (int64_t i = 0; i < p.Cq; ++i) way[q * p.C + from[i]] = acc[q * width + this->lane(g, i)];
        }
      }
      if (p.shuffled != nullptr) {
        permute(way, p.unshuffled, n, p.C, image_rows);
      } else {
        for (int64_t i = 0; i < n * p.C; ++i) image_rows[i] += way[i];
      }
    }
  }

  // way += what passes by an edge's candidates, of image n; `maxima` and `factor` are scratch.
  void bypass(int edge, int64_t n, int64_t r0, int64_t r1, T* maxima, T* factor, T* way) const {
    const MixedEdge& e = p.edges[edge];
    for (int64_t i = 0; i < p.C; ++i) factor[i] = static_cast<T>(beta(edge));
    const T* x = state(e.source) + n * this->height(e.source) * this->columns(e.source) * p.C;
    if (e.stride == 1) {
      add_scaled<T>(factor, x + r0 * p.Wo * p.C, (r1 - r0) * p.Wo, p.C, way);
      return;
    }
    for (int64_t r = r0; r < r1; ++r) {
      add_scaled<T>(factor, this->pass_row(e, x, r, maxima), p.Wo, p.C, way + (r - r0) * p.Wo * p.C);
    }
  }

  // A node's finished rows: into its state, if edges read it, and into its channels of the output.
  void write(int node, int64_t block, int64_t r0, int64_t r1, const T* rows) const {
    const int64_t n = (r1 - r0) * p.Wo;
    for (int g = 0; g < this->images_in(block); ++g) {
      const T* from = rows + g * tile_rows * p.Wo * p.C;
      const int64_t pixel = ((block * G + g) * p.Ho + r0) * p.Wo;
      if (p.state[node] >= 0) copy(from, n * p.C, c.saved + p.state[node] + pixel * p.C);
      copy_pixels(from, p.C, n, p.C, c.out + (pixel * p.nodes + node) * p.C, p.nodes * p.C);
    }
  }
};

}  // namespace
}  // namespace fastdarts::ISA
