// Forward of the fused cell: the order of its stages, and stage (3) of mixed_cell_kernels.cpp.
#pragma once

#include "mixed_cell_forward_convolutions.h"

namespace fastdarts::ISA {
namespace {

// The nodes' sums over the convolutions' y, pools, skips and bypassed channels.
template <typename T, int G>
class Forward : ForwardConvolutions<T, G> {
  static constexpr int MOST = 12;  // terms of one edge: at most as many as there are candidates
  static constexpr int POOLS = 4;  // of which at most so many are pools
  using Base = ForwardConvolutions<T, G>;
  using Base::L, Base::p, Base::c, Base::width, Base::image, Base::tile_rows, Base::pivots, Base::starts,
      Base::by_source;
  using typename Base::V;

 public:
  Forward(const CellPlan& plan, const CellForward<T>& call)
      : Base(plan, call),
        factors(static_cast<std::size_t>(plan.num_edges * MOST * width)),
        offsets(static_cast<std::size_t>(plan.num_edges * width)) {}

  void run() {
    this->pack_all(c.weights, false, this->packed);
    if (!p.batch_statistics) {
      for (int64_t i = 0; i < p.num_bns * p.Cq; ++i) pivots[i] = static_cast<T>(c.mean[i]);
    }
    for_each(p.inputs * p.blocks, [&](int64_t i) { this->keep_block(static_cast<int>(i % p.inputs), i / p.inputs); });
    int begin = 0;
    for (int node = 0; node < p.nodes; ++node) {
      for (int end; begin < p.num_edges && p.edges[by_source[begin]].source < p.inputs + node; begin = end) {
        end = smaller(begin + p.edges_at_once, p.num_edges);
        while (p.edges[by_source[end - 1]].source >= p.inputs + node) --end;
        this->convolutions(begin, end);
      }
      const Timed timed(Stage::nodes);
      for_each(p.num_edges, [&](int64_t i) {
        if (p.edges[i].node == node) find_factors(static_cast<int>(i));
      });
      for_each(p.blocks, [&](int64_t block) {
        sum_node(node, block);
        if (p.state[node] >= 0) this->keep_block(p.inputs + node, block);
      });
    }
  }

 private:
  const Scratch<T> factors;       // (E, MOST, width): of each term of an edge
  const Scratch<double> offsets;  // (E, width): the constant of an edge

  // One term of a node's affine sum: factor[lane] * values[pixel][lane].
  struct Term {
    const T* values;
    const T* factor;
  };

  // Of all images: without the weights of single ones.
  double beta(int edge) const { return c.edges == nullptr || p.edges_per_image ? 1 : c.edges[edge]; }
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
        const double r = this->scale_of(bn, ch) * this->inverse_std(c.variance, bn, ch);
        const double from_pivot = static_cast<double>(pivots[bn * p.Cq + ch]) - c.mean[bn * p.Cq + ch];
        const double constant = a * (r * from_pivot + this->shift_of(bn, ch));
        for (int g = 0; g < G; ++g) offset[this->lane(g, ch)] += constant;
      }
      this->expand(factor,
                   [&](int64_t ch) { return a * this->scale_of(bn, ch) * this->inverse_std(c.variance, bn, ch); });
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
    if (e.plain_max >= 0) plain(e.plain_max);
    if (e.plain_avg >= 0) plain(e.plain_avg);
    if (e.skip >= 0 && e.stride == 1) plain(e.skip);
  }

  // The terms of an edge over output rows r .. end, with its factors; returns how many.
  int edge_terms(int edge, const T* factor, int64_t block, int64_t r, int64_t end, const T* x, T* pooled, T* line,
                 const T* zero, Term* terms) const {
    const MixedEdge& e = p.edges[edge];
    const int64_t from = block * image + r * p.Wo * width, n = tile_rows * p.Wo * width;
    int t = 0;
    const auto add = [&](const T* values) {
      terms[t] = {values, factor + t * width};
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
    if (e.plain_max >= 0) add(pool(true, zero, pooled + 2 * n));
    if (e.plain_avg >= 0) add(pool(false, zero, pooled + 3 * n));
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
    const Scratch<T> base(edges * width), acc(n * width), pooled(edges * POOLS * n * width), line(p.W * width),
        zero(width), rows(p.direct ? 1 : G * n * p.C), way(p.direct ? 1 : G * n * p.C),
        buffers(edges * this->buffer_size(0));
    const Scratch<Term> terms(edges * MOST);
    const Scratch<const T*> source(edges);
    clear<T>(zero, width);
    const Scratch<T> weighted(p.edges_per_image ? edges * MOST * width : 0);
    const Scratch<double> constants(edges * width);
    const T* factor = factors + first * MOST * width;
    copy(offsets + first * width, edges * width, static_cast<double*>(constants));
    if (p.edges_per_image) {
      copy(factor, edges * MOST * width, static_cast<T*>(weighted));
      factor = weighted;
    }
    for (int e = 0; e < edges && p.edges_per_image; ++e) {
      this->weigh_images(c.edges, first + e, block, MOST, weighted + e * MOST * width);
      this->weigh_images(c.edges, first + e, block, 1, constants + e * width);
    }
    for (int e = 0; e < edges; ++e) {
      source[e] = this->block_of(p.edges[first + e].source, block, first + e, buffers + e * this->buffer_size(0));
      for (int64_t i = 0; i < width; ++i) {  // edges that process the same channels are summed at once
        double sum = constants[e * width + i];
        for (int other = 1; other < edges && p.shared && e == 0; ++other) sum += constants[other * width + i];
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
          t += edge_terms(first + e, factor + e * MOST * width, block, r, end, source[e],
                          pooled + e * POOLS * n * width, line, zero, terms + t);
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
    const double weight_of_image = p.edges_per_image ? c.edges[edge * p.N + n] : beta(edge);
    for (int64_t i = 0; i < p.C; ++i) factor[i] = static_cast<T>(weight_of_image);
    const T* x = this->state(e.source) + n * this->height(e.source) * this->columns(e.source) * p.C;
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
