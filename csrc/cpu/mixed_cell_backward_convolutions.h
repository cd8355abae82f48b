// Backward of the fused cell's convolutions, stages (5) and (6) of mixed_cell_kernels.cpp.
#pragma once

#include "mixed_cell_backward_sums.h"

namespace fastdarts::ISA {
namespace {

// Gradients of the convolutions' weights and of the states that they read.
template <typename T, int G>
class BackwardConvolutions : protected BackwardSums<T, G> {
  using Base = BackwardSums<T, G>;

 protected:
  using Base::L, Base::p, Base::c, Base::width, Base::pixels, Base::image, Base::tile_rows, Base::pivots;
  using typename Base::V;

  BackwardConvolutions(const CellPlan& plan, const CellBackward<T>& call)
      : Base(plan, call),
        packed(static_cast<std::size_t>(plan.packed)),
        chunks(smaller(CHUNKS, plan.blocks)),
        first_factors(static_cast<std::size_t>(plan.num_units * 3 * width)),
        middle_sums(static_cast<std::size_t>(plan.num_units * plan.blocks * 2 * width)),
        middle_totals(static_cast<std::size_t>(plan.num_units * 2 * plan.Cq)) {}

  const Scratch<T> packed;  // all units' matrices, transposed

  // The gradients of the convolutions' weights of edges `begin` .. `end`, and what these edges' convolutions add to
  // those of their sources.
  void convolutions(int begin, int end) {
    const int count = end - begin;
    const int first = p.edges[begin].begin, units = p.edges[end - 1].end - first;
    const Scratch<int64_t> offsets(units + 1), middles(units + 1);
    offsets[0] = middles[0] = 0;
    for (int i = 0; i < units; ++i) {
      const Unit& u = p.units[first + i];
      offsets[i + 1] = offsets[i] + this->depthwise_size(u) + this->matrix_size(u);
      middles[i + 1] = middles[i] + (u.after < 0 ? 0 : p.blocks * image);
    }
    const bool learn = c.grad_weights != nullptr;
    const Scratch<T> parts(learn ? chunks * offsets[units] : 0);  // weight gradients of each chunk
    const Scratch<T> middle(middles[units]);                      // of the first halves' BNs' outputs
    const auto part = [&](int64_t unit, int64_t chunk) -> T* {
      return learn ? parts + chunk * offsets[units] + offsets[unit - first] : nullptr;
    };
    for (const bool second : BOTH) {
      const Timed timed(second ? Stage::second_gradients : Stage::first_gradients);
      const auto gradients = [&](int64_t i) {
        const int edge = begin + static_cast<int>(i % count);
        if (!works(p.edges[edge])) return;
        const int64_t chunk = i / count;
        for (int u = p.edges[edge].begin; u < p.edges[edge].end && learn; ++u) {
          if ((p.units[u].before >= 0) == second) clear(part(u, chunk), offsets[u - first + 1] - offsets[u - first]);
        }
        const auto middle_of = [&](int64_t unit) { return middle + middles[unit - first]; };
        if (second) {
          second_halves(edge, chunk, part, middle_of);
        } else {
          first_halves(edge, chunk, part, middle_of);
        }
      };
      if (second) {
        for_each_backwards(count * chunks, gradients);
      } else {
        for_each(count * chunks, gradients);
      }
      if (second) normalise_back(first, units);
    }
    if (learn) {
      const Timed timed(Stage::collect);
      for_each(units, [&](int64_t i) { collect(p.units[first + i], parts + offsets[i], offsets[units]); });
    }
  }

 private:
  const int64_t chunks;                 // runs of blocks
  const Scratch<T> first_factors;       // (units, 3, width): `factors` of the first halves
  const Scratch<double> middle_sums;    // (units, blocks, 2, width): of a first half's dL/dxhat, and times xhat
  const Scratch<double> middle_totals;  // (units, 2, Cq): likewise, over all blocks and ranks

  bool wants_source(const MixedEdge& e) const { return e.source >= p.inputs || c.grad_inputs != nullptr; }
  bool works(const MixedEdge& e) const { return wants_source(e) || c.grad_weights != nullptr; }

  struct Run {
    int64_t begin, end;
  };
  Run blocks_of(int64_t chunk) const { return {chunk * p.blocks / chunks, (chunk + 1) * p.blocks / chunks}; }

  // Buffers of a unit's backward, for one run of blocks.
  struct Work {
    Work(const BackwardConvolutions& b, int64_t h, int64_t w)
        : x(b.padded(h, w)),
          dx(b.padded(h, w)),
          dz(b.padded(b.p.Ho, b.p.Wo)),
          dy(b.tile_rows * b.p.Wo * b.width),
          tile(b.tile_rows * b.p.Wo * b.width),
          taps(WIDEST_KERNEL * WIDEST_KERNEL * b.width) {
      b.clear_border(x, h, w);
      b.clear_border(dz, b.p.Ho, b.p.Wo);
    }
    mutable bool fresh = true;  // nothing has been written to dx yet
    const Scratch<T> x, dx;     // padded: the unit's input (after its ReLU), and the gradient of that
    const Scratch<T> dz;        // padded: gradient of the depthwise convolution's output
    const Scratch<T> dy, tile, taps;
  };

  // dL/dy of output rows r0 .. r1: a * g + q * y + c; zero in the lanes of a last block's missing images.
  void gradient_tile(const T* factor, const T* g, const T* y, int64_t block, int64_t r0, int64_t r1, T* dy) const {
    const int64_t from = r0 * p.Wo * width, n = (r1 - r0) * p.Wo;
    for (int64_t i = 0; i < width; i += L) {
      const V a = load(factor + i), q = load(factor + width + i), constant = load(factor + 2 * width + i);
      for (int64_t px = i; px < n * width; px += width) {
        store(dy + px, a * load(g + from + px) + (q * load(y + from + px) + constant));
      }
    }
    this->hide_missing(block, n, dy);
  }

  // A unit's backward for one block: work.dx += the gradient of its input, part += those of its weights (nullptr: not
  // needed). g is the gradient that `factor` turns into dL/dy.
  void unit_backward(const Unit& u, int64_t block, const T* g, const T* factor, int64_t h, int64_t w, bool need_dx,
                     const Work& work, T* part) const {
    const T* y = c.saved + u.y + block * image;
    const T* matrices = packed + u.pack + 2 * this->depthwise_size(u);
    const int64_t row = this->padded_row(w), dz_row = this->padded_row(p.Wo);
    constexpr int64_t here[] = {0};
    if (!u.kernel && need_dx) begin_dx(h, w, work);
    for (int64_t r = 0; r < p.Ho; r += tile_rows) {
      const int64_t end = smaller(p.Ho, r + tile_rows), n = (end - r) * p.Wo;
      gradient_tile(factor, g, y, block, r, end, work.dy);
      if (!u.kernel) {
        dense_tile(u, matrices, row, r, end, need_dx, work, part);
        continue;
      }
      if (part != nullptr) {
        this->depthwise_tile(u, work.x, row, r, end, packed + u.pack, work.tile);
        outer<T, G>(work.dy, width, this->rows_of_matrix, work.tile, width, p.vectors, n,
                    part + this->depthwise_size(u));
      }
      T* dz = this->inside(work.dz, p.Wo) + r * dz_row;
      const auto product = [&](const T* dy, T* to, int64_t count) {
        pointwise<T, G>(
            {dy, width, here, 1, this->rows_of_matrix, matrices, p.vectors, Start::zero, nullptr, to, width, nullptr},
            count);
      };
      if (p.Wo % 8 == 0) {
        for (int64_t i = 0; i < end - r; ++i) product(work.dy + i * p.Wo * width, dz + i * dz_row, p.Wo);
      } else {  // whole registers of pixels, then to their rows
        product(work.dy, work.tile, n);
        for (int64_t i = 0; i < end - r; ++i) copy(work.tile + i * p.Wo * width, p.Wo * width, dz + i * dz_row);
      }
    }
    if (!u.kernel) return;
    if (part != nullptr) {
      const auto gradient = depthwise_weight_of<T>(u.kernel, u.dilation, u.stride);
      clear<T>(work.taps, this->depthwise_size(u));
      for (int64_t i = 0; i < width; i += L) {
        gradient(this->first_tap(u, work.x, row, 0) + i, row, width, this->inside(work.dz, p.Wo) + i, dz_row, p.Ho,
                 p.Wo, work.taps + i, width);
      }
      for (int64_t i = 0; i < this->depthwise_size(u); ++i) part[i] += work.taps[i];
    }
    if (need_dx) depthwise_transposed(u, h, w, work);
  }

  void dense_tile(const Unit& u, const T* matrices, int64_t row, int64_t r0, int64_t r1, bool need_dx, const Work& work,
                  T* part) const {
    int64_t offsets[9];
    this->tap_offsets(u, row, offsets);
    constexpr int64_t here[] = {0};
    const int64_t size = this->rows_of_matrix * width;
    for (int64_t r = r0; r < r1; ++r) {
      const T* dy = work.dy + (r - r0) * p.Wo * width;
      const int64_t from = (r * u.stride + PAD) * row + PAD * width;
      for (int t = 0; t < u.taps; ++t) {
        if (part != nullptr) {
          outer<T, G>(dy, width, this->rows_of_matrix, work.x + from + offsets[t], u.stride * width, p.vectors, p.Wo,
                      part + t * size);
        }
        if (need_dx) {
          pointwise<T, G>({dy, width, here, 1, this->rows_of_matrix, matrices + t * size, p.vectors, Start::output,
                           nullptr, work.dx + from + offsets[t], u.stride * width, nullptr},
                          p.Wo);
        }
      }
    }
  }

  void begin_dx(int64_t h, int64_t w, const Work& work) const {
    if (work.fresh) clear<T>(work.dx, this->padded(h, w));
    work.fresh = false;
  }

  // work.dx += the transpose of u's depthwise convolution of work.dz. Under stride 2 each parity of rows and columns
  // sees only every other tap (or, dilated, all or none).
  void depthwise_transposed(const Unit& u, int64_t h, int64_t w, const Work& work) const {
    const int64_t row = this->padded_row(w), dz_row = this->padded_row(p.Wo);
    const T* taps = packed + u.pack + this->depthwise_size(u);  // back to front
    T* dx = this->inside(work.dx, w);
    const int64_t reach = u.dilation * (u.kernel - 1) / 2;
    if (u.stride == 1) {
      const auto depthwise = depthwise_of<T>(u.kernel, u.dilation, 1);
      for (int64_t r = 0; r < h; ++r) {
        for (int64_t i = 0; i < width; i += L) {
          depthwise(this->first_tap(u, work.dz, dz_row, r) + i, dz_row, width, taps + i, width, dx + r * row + i, width,
                    w, !work.fresh);
        }
      }
      work.fresh = false;
      return;
    }
    begin_dx(h, w, work);
    struct Parity {
      int64_t first, count, from;  // taps (of those back to front), and which output pixel the first one meets
    };
    const int step = u.dilation == 1 ? 2 : 1;
    const auto parity_of = [&](int64_t odd) {
      Parity result{0, 0, 0};
      for (int64_t k = u.kernel - 1; k >= 0; --k) {  // tap k meets output (odd + reach - k * dilation) / 2
        if ((odd + reach - k * u.dilation) % 2 != 0) continue;
        if (result.count++ == 0) {
          result.first = u.kernel - 1 - k;
          result.from = (odd + reach - k * u.dilation) / 2;
        }
      }
      return result;
    };
    for (int64_t odd_row = 0; odd_row < 2; ++odd_row) {
      const Parity rows = parity_of(odd_row);
      for (int64_t odd_col = 0; odd_col < 2; ++odd_col) {
        const Parity cols = parity_of(odd_col);
        if (rows.count == 0 || cols.count == 0) continue;
        for (int64_t r = odd_row; r < h; r += 2) {
          const T* from = work.dz + (PAD + r / 2 + rows.from) * dz_row + (PAD + cols.from) * width;
          for (int64_t i = 0; i < width; i += L) {
            depthwise_row_of(from + i, dz_row, width, taps + (rows.first * u.kernel + cols.first) * width + i,
                             static_cast<int>(rows.count), step * u.kernel * width, static_cast<int>(cols.count),
                             step * width, dx + r * row + odd_col * width + i, 2 * width, (w - odd_col + 1) / 2);
          }
        }
      }
    }
  }

  template <typename Part, typename Middle>
  void second_halves(int edge, int64_t chunk, const Part& part, const Middle& middle) {
    const MixedEdge& e = p.edges[edge];
    bool any = false;
    for (int i = e.begin; i < e.end; ++i) any |= p.units[i].before >= 0;
    if (!any) return;
    const Work work(*this, p.Ho, p.Wo);
    const Scratch<T> buffer(this->buffer_size(p.inputs)), factor((e.end - e.begin) * 2 * width), of_block(3 * width);
    for (int i = e.begin; i < e.end; ++i) {
      if (p.units[i].before < 0) continue;
      T* scale = factor + (i - e.begin) * 2 * width;
      this->normalisation(p.units[p.units[i].before].bn, c.mean, c.variance, pivots, scale, scale + width);
    }
    const auto run = blocks_of(chunk);
    for (int64_t block = run.end - 1; block >= run.begin; --block) {
      const T* g = this->gradient_of(e.node, block, edge, buffer);
      for (int i = e.begin; i < e.end; ++i) {
        const Unit& u = p.units[i];
        if (u.before < 0) continue;
        const T* scale = factor + (i - e.begin) * 2 * width;
        this->middle(c.saved + p.units[u.before].y + block * image, scale, scale + width, p.Ho, work.x);
        work.fresh = true;
        const T* last = this->factors_of(edge, u.column, block, of_block);
        unit_backward(u, block, g, last, p.Ho, p.Wo, true, work, part(i, chunk));
        keep_middle(u.before, block, work, middle(u.before) + block * image);
      }
    }
  }

  // dL/d of a first half's BN: the gradient of the middle's output where that is positive; and its sums, of itself and
  // of its product with xhat, or, where the BN is affine, with y.
  void keep_middle(int unit, int64_t block, const Work& work, T* to) const {
    const int64_t row = this->padded_row(p.Wo);
    const T* h = this->inside(work.x, p.Wo);
    const T* dh = this->inside(work.dx, p.Wo);
    const bool affine = p.scale != nullptr;
    const T* with = affine ? c.saved + p.units[unit].y + block * image : h;
    const int64_t with_row = affine ? p.Wo * width : row;
    double* into = middle_sums + (unit * p.blocks + block) * 2 * width;
    clear(into, 2 * width);
    for (int64_t r0 = 0; r0 < p.Ho; r0 += tile_rows) {
      const int64_t r1 = smaller(p.Ho, r0 + tile_rows);
      for (int64_t i = 0; i < width; i += L) {
        V sum{}, product{};
        for (int64_t r = r0; r < r1; ++r) {
          for (int64_t q = i; q < p.Wo * width; q += width) {
            const V grad = load(h + r * row + q) > 0 ? load(dh + r * row + q) : V{};
            store(to + r * p.Wo * width + q, grad);
            sum += grad;
            product += grad * load(with + r * with_row + q);
          }
        }
        fold_vector<T>(sum, into + i);
        fold_vector<T>(product, into + width + i);
      }
    }
  }

  bool is_first_half(const Unit& u) const { return u.after >= 0 && works(p.edges[u.edge]); }

  // From the sums of `units` units to the factors of those among them that are first halves.
  void normalise_back(int first, int units) {
    int halves = 0;
    for (int i = first; i < first + units; ++i) halves += is_first_half(p.units[i]);
    if (halves == 0) return;
    for_each(units, [&](int64_t i) { add_up_middle(first + static_cast<int>(i)); });
    const int64_t ranks = this->over_ranks(units * 2 * p.Cq, middle_totals + first * 2 * p.Cq);
    for_each(units, [&](int64_t i) { use_middle_sums(first + static_cast<int>(i), ranks); });
  }

  void add_up_middle(int unit) {
    double* s0 = middle_totals + unit * 2 * p.Cq;
    clear(s0, 2 * p.Cq);
    if (!is_first_half(p.units[unit])) return;
    for (int64_t ch = 0; ch < p.Cq; ++ch) {
      for (int64_t block = 0; block < p.blocks; ++block) {
        const double* from = middle_sums + (unit * p.blocks + block) * 2 * width;
        s0[ch] += this->channel_sum(from, block, ch);
        s0[p.Cq + ch] += this->channel_sum(from + width, block, ch);
      }
      if (p.scale == nullptr) continue;
      const int bn = p.units[unit].bn;
      double& s1 = s0[p.Cq + ch];
      s1 = this->inverse_std(c.variance, bn, ch) * (s1 - this->mean_of(bn, ch) * s0[ch]);
      this->give_affine(bn, ch, s1, s0[ch]);
    }
  }

  // The factors of a first half's dL/dy = r (d - S0 / m - xhat S1 / m), times the BN's scale; d is the gradient of its
  // output.
  void use_middle_sums(int unit, int64_t ranks) {
    const Unit& u = p.units[unit];
    if (!is_first_half(u)) return;
    const double m = static_cast<double>(p.N * pixels * ranks);
    const double *s0 = middle_totals + unit * 2 * p.Cq, *s1 = s0 + p.Cq;
    const Scratch<double> a(p.Cq), q(p.Cq), constant(p.Cq);
    for (int64_t ch = 0; ch < p.Cq; ++ch) {
      const double r = this->inverse_std(c.variance, u.bn, ch);
      a[ch] = this->scale_of(u.bn, ch) * r;
      q[ch] = p.batch_statistics ? -a[ch] * r * s1[ch] / m : 0;
      constant[ch] = p.batch_statistics ? -a[ch] * s0[ch] / m - q[ch] * this->mean_of(u.bn, ch) : 0;
    }
    this->set_factors(first_factors + unit * 3 * width, a, q, constant);
  }

  template <typename Part, typename Middle>
  void first_halves(int edge, int64_t chunk, const Part& part, const Middle& middle) {
    const MixedEdge& e = p.edges[edge];
    if (e.begin == e.end) return;
    const int64_t h = this->height(e.source), w = this->columns(e.source), row = this->padded_row(w);
    const bool need_dx = wants_source(e);
    const Work work(*this, h, w);
    const Scratch<T> g_buffer(this->buffer_size(p.inputs)), x_buffer(this->buffer_size(e.source)), of_block(3 * width);
    const auto run = blocks_of(chunk);
    for (int64_t block = run.begin; block < run.end; ++block) {
      const T* g = this->gradient_of(e.node, block, edge, g_buffer);
      this->rectify(this->block_of(e.source, block, edge, x_buffer), h, w, work.x);
      work.fresh = true;
      for (int i = e.begin; i < e.end; ++i) {
        const Unit& u = p.units[i];
        if (u.before >= 0) continue;
        const T* grad = u.after < 0 ? g : middle(i) + block * image;
        const T* factor =
            u.after < 0 ? this->factors_of(edge, u.column, block, of_block) : first_factors + i * 3 * width;
        unit_backward(u, block, grad, factor, h, w, need_dx, work, part(i, chunk));
      }
      if (!need_dx) continue;
      const T* dx = this->inside(work.dx, w);
      const T* x = this->inside(work.x, w);
      const bool mine = !p.direct && !this->in_blocks();
      const Scratch<T> buffer(mine ? h * w * width : 0);
      T* to = mine ? static_cast<T*>(buffer) : this->dstate_of(e.source, block);
      for (int64_t r = 0; r < h; ++r) {
        for (int64_t i = 0; i < w * width; i += L) {
          const V grad = load(x + r * row + i) > 0 ? load(dx + r * row + i) : V{};
          T* at = to + r * w * width + i;
          store(at, mine ? grad : load(at) + grad);
        }
      }
      if (mine) this->scatter_add(buffer, h * w, block, this->channels(edge), this->grad_state(e.source));
    }
  }

  // A unit's weight gradients from the chunks' parts, in the order of `weights`.
  void collect(const Unit& u, const T* parts, int64_t stride) {
    if (!works(p.edges[u.edge])) return;
    const auto total = [&](int64_t at, int64_t ch) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        for (int g = 0; g < G; ++g) sum += static_cast<double>(parts[chunk * stride + at + this->lane(g, ch)]);
      }
      return static_cast<T>(sum);
    };
    const int64_t taps = u.kernel * u.kernel, dense = u.kernel ? 1 : u.taps, half = p.Cq / 2;
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t ch = 0; ch < p.Cq; ++ch) c.grad_weights[u.depthwise + ch * taps + t] = total(t * width, ch);
    }
    for (int64_t t = 0; t < dense; ++t) {
      for (int64_t out = 0; out < p.Cq; ++out) {
        if (u.halves && out / half != t) continue;
        for (int64_t in = 0; in < p.Cq; ++in) {
          const int64_t at = u.halves ? out * p.Cq + in : (out * p.Cq + in) * dense + t;
          c.grad_weights[u.pointwise + at] = total(taps * width + (t * this->rows_of_matrix + out) * width, in);
        }
      }
    }
  }
};

}  // namespace
}  // namespace fastdarts::ISA
