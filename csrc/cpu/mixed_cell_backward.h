// Backward of the fused cell, stages (4) to (7) of mixed_cell_kernels.cpp.
#pragma once

#include "mixed_cell_layout.h"

namespace fastdarts::ISA {
namespace {

template <typename T, int G>
class Backward : Cell<T, G> {
  using Base = Cell<T, G>;
  using Base::L, Base::p, Base::width, Base::pixels, Base::image, Base::tile_rows;
  using typename Base::V;

 public:
  Backward(const CellPlan& plan, const CellBackward<T>& call)
      : Base(plan),
        c(call),
        pivots(call.saved + plan.pivots),
        chunks(smaller(CHUNKS, plan.blocks)),
        node_numbers(plan.N * plan.Ho * plan.Wo * plan.C),
        packed(static_cast<std::size_t>(plan.packed)),
        grads(static_cast<std::size_t>(plan.nodes * node_numbers)),
        unshuffled(static_cast<std::size_t>(plan.shuffled == nullptr ? 1 : plan.nodes * node_numbers)),
        state_blocks(static_cast<std::size_t>(this->all_states())),
        grad_blocks(static_cast<std::size_t>(this->in_blocks() ? plan.nodes * plan.blocks * image : 0)),
        dstate_blocks(static_cast<std::size_t>(this->all_states())),
        slots(plan.columns + 1),
        sums(static_cast<std::size_t>(plan.num_edges * plan.blocks * slots * width)),
        bypassed(static_cast<std::size_t>(plan.num_edges * plan.blocks)),
        factors(static_cast<std::size_t>(plan.num_edges * plan.columns * 3 * width)),
        first_factors(static_cast<std::size_t>(plan.num_units * 3 * width)),
        middle_sums(static_cast<std::size_t>(plan.num_units * plan.blocks * 2 * width)) {}

  void run() {
    this->pack_all(c.weights, true, packed);
    lay_out();
    for (int node = p.nodes - 1; node >= 0; --node) {
      complete(node);
      int begin = 0, end = 0;
      for (int i = 0; i < p.num_edges; ++i) {
        if (p.edges[i].node < node) begin = i + 1;
        if (p.edges[i].node <= node) end = i + 1;
      }
      for (int i = begin; i < end; i += p.edges_at_once) through(i, smaller(i + p.edges_at_once, end));
    }
    for (int s = 0; s < p.inputs && c.grad_inputs != nullptr; ++s) {
      const Timed timed(Stage::finish);
      for_each(p.blocks, [&](int64_t block) { finish_block(s, block); });
    }
  }

 private:
  const CellBackward<T>& c;
  const T* const pivots;               // (bns, Cq)
  const int64_t chunks, node_numbers;  // runs of blocks; numbers of a node's state
  const Scratch<T> packed;             // all units' matrices, transposed
  const Scratch<T> grads;              // (nodes, N, Ho, Wo, C): of the states that nodes are
  const Scratch<T> unshuffled;         // the same with the channels in the order of the inputs'
  const Scratch<T> state_blocks;       // all states in block layout, where that is not their own
  const Scratch<T> grad_blocks;        // likewise all nodes' gradients
  const Scratch<T> dstate_blocks;      // likewise what edges add to the gradients of states
  const int64_t slots;                 // of `sums`: the gradient's own, then one for each column
  const Scratch<double> sums;          // (E, blocks, slots, width): of g, and of g times each candidate's output
  const Scratch<double> bypassed;      // (E, blocks): sum of g times what passes by
  const Scratch<T> factors;            // (E, columns, 3, width): a, q, c of dL/dy = a * g + q * y + c
  const Scratch<T> first_factors;      // (units, 3, width): the same of the first halves
  const Scratch<double> middle_sums;   // (units, blocks, 2, width): of a first half's dL/dxhat, and times xhat

  const T* state(int s) const { return s < p.inputs ? c.inputs[s] : c.saved + p.state[s - p.inputs]; }
  T* grad_state(int s) const { return s < p.inputs ? c.grad_inputs[s] : grads + (s - p.inputs) * node_numbers; }
  // A node's gradient, its channels in the order in which the inputs have them.
  const T* grad_node(int node) const { return (p.shuffled == nullptr ? grads : unshuffled) + node * node_numbers; }

  double beta(int edge) const { return c.edges == nullptr ? 1 : c.edges[edge]; }
  double weight(int edge, int column) const { return beta(edge) * c.ops[edge * p.columns + column]; }
  bool wants_source(const MixedEdge& e) const { return e.source >= p.inputs || c.grad_inputs != nullptr; }
  bool works(const MixedEdge& e) const { return wants_source(e) || c.grad_weights != nullptr; }

  double* sums_of(int edge, int64_t block, int slot) const {
    return sums + ((edge * p.blocks + block) * slots + slot) * width;
  }
  T* factors_of(int edge, int column) const { return factors + (edge * p.columns + column) * 3 * width; }

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

  // ------------------------------------------------------------------------------------------- edges of a node

  void through(int begin, int end) {
    const int count = end - begin;
    {
      const Timed timed(Stage::sums);
      for_each(count * p.blocks, [&](int64_t i) { take_sums(begin + static_cast<int>(i % count), i / count); });
      for_each(count, [&](int64_t i) { use_sums(begin + static_cast<int>(i)); });
    }

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
    const Scratch<T> middle(middles[units]);                      // dL/dxhat of the first halves
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
      if (second) {
        for_each(units, [&](int64_t i) { use_middle_sums(p.units[first + i]); });
      }
    }
    if (learn) {
      const Timed timed(Stage::collect);
      for_each(units, [&](int64_t i) { collect(p.units[first + i], parts + offsets[i], offsets[units]); });
    }
  }

  // A state that feeds edges, in block layout; nothing added to its gradient yet.
  void keep_block(int s, int64_t block) const {
    if (s >= p.inputs && p.state[s - p.inputs] < 0) return;
    const int64_t n = this->height(s) * this->columns(s);
    this->gather(state(s), n, block, this->channels(0), state_blocks + this->place_of(s, block));
    clear(dstate_blocks + this->place_of(s, block), n * width);
  }

  // A node's gradient, complete: its channels in the inputs' order, in block layout.
  void lay_out_gradient(int node, int64_t block) const {
    for (int64_t n = block * G; n < block * G + this->images_in(block) && p.shuffled != nullptr; ++n) {
      const int64_t at = node * node_numbers + n * pixels * p.C;
      permute(grads + at, p.shuffled, pixels, p.C, unshuffled + at);
    }
    if (this->in_blocks()) {
      this->gather(grad_node(node), pixels, block, this->channels(0), grad_blocks + (node * p.blocks + block) * image);
    }
  }

  const T* block_of(int s, int64_t block, int edge, T* buffer) const {
    return Base::block_of(state(s), state_blocks, s, block, edge, buffer);
  }
  // A node's gradient as block_of gives its state.
  const T* gradient_of(int node, int64_t block, int edge, T* buffer) const {
    return Base::block_of(grad_node(node), grad_blocks - p.inputs * this->size_of(0), p.inputs + node, block, edge,
                          buffer);
  }

  // ------------------------------------------------------------------------------------------------ (4) sums

  void take_sums(int edge, int64_t block) {
    const MixedEdge& e = p.edges[edge];
    const Scratch<T> g_buffer(this->buffer_size(p.inputs)), x_buffer(this->buffer_size(e.source)),
        line(this->columns(e.source) * width), pooled(p.Wo * width), start(width);
    const T* g = gradient_of(e.node, block, edge, g_buffer);
    const T* x = block_of(e.source, block, edge, x_buffer);
    clear(sums_of(edge, block, 0), slots * width);
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
    if (c.need_ops) pool(false, e.plain, -1);
    bypassed[edge * p.blocks + block] = c.edges == nullptr || p.k == 1 || !c.need_ops ? 0 : bypass_sum(edge, block);
  }

  void pool_start(int bn, T* start) const {
    this->expand(start, [&](int64_t ch) { return bn < 0 ? T(0) : -pivots[bn * p.Cq + ch]; });
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

  // value where a channel passes by an edge's candidates, 0 where it goes through them; (C,).
  void passing(int edge, T value, T* to) const {
    for (int64_t i = 0; i < p.C; ++i) to[i] = value;
    for (int64_t i = 0; i < p.Cq; ++i) to[this->channels(edge)[i]] = 0;
  }

  // Gradients of ops and edges, and the factors of each candidate's dL/dy. With S0 = sum g and S1 = sum g * xhat:
  // dL/dy = beta a r (g - S0 / m - xhat S1 / m), the means only where the statistics are the batch's.
  void use_sums(int edge) {
    const MixedEdge& e = p.edges[edge];
    const double m = static_cast<double>(p.N * pixels);
    double of_edge = 0;
    for (int64_t block = 0; block < p.blocks; ++block) of_edge += bypassed[edge * p.blocks + block];
    const auto give = [&](int column, double grad) {
      c.grad_ops[edge * p.columns + column] = beta(edge) * grad;
      of_edge += c.ops[edge * p.columns + column] * grad;
    };
    const auto normalised = [&](int column, int bn) {
      if (column < 0) return;
      const Scratch<double> a(p.Cq), q(p.Cq), constant(p.Cq);
      double grad = 0;
      for (int64_t ch = 0; ch < p.Cq; ++ch) {
        const double r = this->inverse_std(c.variance, bn, ch), mean = mean_of(bn, ch);
        const double s0 = sum(edge, 0, ch), s1 = r * (sum(edge, 1 + column, ch) - mean * s0);
        grad += s1;
        a[ch] = weight(edge, column) * r;
        q[ch] = p.batch_statistics ? -a[ch] * r * s1 / m : 0;
        constant[ch] = p.batch_statistics ? -a[ch] * s0 / m - q[ch] * mean : 0;
      }
      give(column, grad);
      set_factors(factors_of(edge, column), a, q, constant);
    };
    const auto plain = [&](int column) {
      if (column < 0) return;
      double grad = 0;
      for (int64_t ch = 0; ch < p.Cq; ++ch) grad += sum(edge, 1 + column, ch);
      give(column, grad);
    };
    for (int i = e.begin; i < e.end; ++i) {
      if (p.units[i].after < 0) normalised(p.units[i].column, p.units[i].bn);
    }
    normalised(e.max_pool, e.max_bn);
    normalised(e.avg_pool, e.avg_bn);
    plain(e.plain);
    if (e.stride == 1) plain(e.skip);
    c.grad_edges[edge] = c.edges == nullptr ? 0 : of_edge;
  }

  // Of what is stored: the mean less the pivot.
  double mean_of(int bn, int64_t ch) const {
    return c.mean[bn * p.Cq + ch] - static_cast<double>(pivots[bn * p.Cq + ch]);
  }

  double sum(int edge, int slot, int64_t ch) const {
    double total = 0;
    for (int64_t block = 0; block < p.blocks; ++block)
      total += this->channel_sum(sums_of(edge, block, slot), block, ch);
    return total;
  }

  void set_factors(T* to, const double* a, const double* q, const double* constant) const {
    this->expand(to, [&](int64_t ch) { return a[ch]; });
    this->expand(to + width, [&](int64_t ch) { return q[ch]; });
    this->expand(to + 2 * width, [&](int64_t ch) { return constant[ch]; });
  }

  // ------------------------------------------------------------------------------------ (5) and (6) convolutions

  // What a unit's backward works with, for one run of blocks.
  struct Work {
    Work(const Backward& b, int64_t h, int64_t w)
        : x(b.padded(h, w)),
          dx(b.padded(h, w)),
          dz(b.padded(b.p.Ho, b.p.Wo)),
          dy(b.tile_rows * b.p.Wo * b.width),
          tile(b.tile_rows * b.p.Wo * b.width),
          taps(25 * b.width) {
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
    hide_missing(block, n, dy);
  }

  // Zero in the lanes of a last block's missing images, over n pixels.
  void hide_missing(int64_t block, int64_t n, T* numbers) const {
    const int64_t present = this->images_in(block);
    if (present == G) return;
    const int64_t from = this->lane(static_cast<int>(present), 0);
    for (int64_t q = 0; q < n; ++q) clear(numbers + q * width + from, L - from);
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

  struct Run {
    int64_t begin, end;
  };
  Run blocks_of(int64_t chunk) const { return {chunk * p.blocks / chunks, (chunk + 1) * p.blocks / chunks}; }

  template <typename Part, typename Middle>
  void second_halves(int edge, int64_t chunk, const Part& part, const Middle& middle) {
    const MixedEdge& e = p.edges[edge];
    bool any = false;
    for (int i = e.begin; i < e.end; ++i) any |= p.units[i].before >= 0;
    if (!any) return;
    const Work work(*this, p.Ho, p.Wo);
    const Scratch<T> buffer(this->buffer_size(p.inputs)), factor((e.end - e.begin) * 2 * width);
    for (int i = e.begin; i < e.end; ++i) {
      if (p.units[i].before < 0) continue;
      T* scale = factor + (i - e.begin) * 2 * width;
      this->normalisation(p.units[p.units[i].before].bn, c.mean, c.variance, pivots, scale, scale + width);
    }
    const auto run = blocks_of(chunk);
    for (int64_t block = run.end - 1; block >= run.begin; --block) {
      const T* g = gradient_of(e.node, block, edge, buffer);
      for (int i = e.begin; i < e.end; ++i) {
        const Unit& u = p.units[i];
        if (u.before < 0) continue;
        const T* scale = factor + (i - e.begin) * 2 * width;
        this->middle(c.saved + p.units[u.before].y + block * image, scale, scale + width, p.Ho, work.x);
        work.fresh = true;
        unit_backward(u, block, g, factors_of(edge, u.column), p.Ho, p.Wo, true, work, part(i, chunk));
        keep_middle(u.before, block, work, middle(u.before) + block * image);
      }
    }
  }

  // dL/dxhat of a first half: the gradient of the middle's output where that is positive; and its two sums.
  void keep_middle(int unit, int64_t block, const Work& work, T* to) const {
    const int64_t row = this->padded_row(p.Wo);
    const T* h = this->inside(work.x, p.Wo);
    const T* dh = this->inside(work.dx, p.Wo);
    double* into = middle_sums + (unit * p.blocks + block) * 2 * width;
    clear(into, 2 * width);
    for (int64_t r0 = 0; r0 < p.Ho; r0 += tile_rows) {
      const int64_t r1 = smaller(p.Ho, r0 + tile_rows);
      for (int64_t i = 0; i < width; i += L) {
        V sum{}, product{};
        for (int64_t r = r0; r < r1; ++r) {
          for (int64_t q = i; q < p.Wo * width; q += width) {
            const V value = load(h + r * row + q), grad = value > 0 ? load(dh + r * row + q) : V{};
            store(to + r * p.Wo * width + q, grad);
            sum += grad;
            product += grad * value;
          }
        }
        fold_vector<T>(sum, into + i);
        fold_vector<T>(product, into + width + i);
      }
    }
  }

  // The factors of a first half's dL/dy = r (d - S0 / m - xhat S1 / m), d = dL/dxhat.
  void use_middle_sums(const Unit& u) {
    if (u.after < 0 || !works(p.edges[u.edge])) return;
    const double m = static_cast<double>(p.N * pixels);
    const Scratch<double> a(p.Cq), q(p.Cq), constant(p.Cq);
    for (int64_t ch = 0; ch < p.Cq; ++ch) {
      double s0 = 0, s1 = 0;
      for (int64_t block = 0; block < p.blocks; ++block) {
        const double* from = middle_sums + (p.units[u.after].before * p.blocks + block) * 2 * width;
        s0 += this->channel_sum(from, block, ch);
        s1 += this->channel_sum(from + width, block, ch);
      }
      a[ch] = this->inverse_std(c.variance, u.bn, ch);
      q[ch] = p.batch_statistics ? -a[ch] * a[ch] * s1 / m : 0;
      constant[ch] = p.batch_statistics ? -a[ch] * s0 / m - q[ch] * mean_of(u.bn, ch) : 0;
    }
    set_factors(first_factors + p.units[u.after].before * 3 * width, a, q, constant);
  }

  template <typename Part, typename Middle>
  void first_halves(int edge, int64_t chunk, const Part& part, const Middle& middle) {
    const MixedEdge& e = p.edges[edge];
    if (e.begin == e.end) return;
    const int64_t h = this->height(e.source), w = this->columns(e.source), row = this->padded_row(w);
    const bool need_dx = wants_source(e);
    const Work work(*this, h, w);
    const Scratch<T> g_buffer(this->buffer_size(p.inputs)), x_buffer(this->buffer_size(e.source));
    const auto run = blocks_of(chunk);
    for (int64_t block = run.begin; block < run.end; ++block) {
      const T* g = gradient_of(e.node, block, edge, g_buffer);
      this->rectify(block_of(e.source, block, edge, x_buffer), h, w, work.x);
      work.fresh = true;
      for (int i = e.begin; i < e.end; ++i) {
        const Unit& u = p.units[i];
        if (u.before >= 0) continue;
        const T* grad = u.after < 0 ? g : middle(i) + block * image;
        const T* factor = u.after < 0 ? factors_of(edge, u.column) : first_factors + i * 3 * width;
        unit_backward(u, block, grad, factor, h, w, need_dx, work, part(i, chunk));
      }
      if (!need_dx) continue;
      const T* dx = this->inside(work.dx, w);
      const T* x = this->inside(work.x, w);
      const bool mine = !p.direct && !this->in_blocks();
      const Scratch<T> buffer(mine ? h * w * width : 0);
      T* to = mine ? static_cast<T*>(buffer) : dstate_of(e.source, block);
      for (int64_t r = 0; r < h; ++r) {
        for (int64_t i = 0; i < w * width; i += L) {
          const V grad = load(x + r * row + i) > 0 ? load(dx + r * row + i) : V{};
          T* at = to + r * w * width + i;
          store(at, mine ? grad : load(at) + grad);
        }
      }
      if (mine) this->scatter_add(buffer, h * w, block, this->channels(edge), grad_state(e.source));
    }
  }

  // Where edges add to the gradient of what they read of a state, if that has a place in block layout.
  T* dstate_of(int s, int64_t block) const {
    return p.direct ? grad_state(s) + block * this->height(s) * this->columns(s) * width
                    : dstate_blocks + this->place_of(s, block);
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
    const Scratch<double> of_pools(4 * width);  // of the maximum and the average: q and c (see use_sums), over edges
    T* dx = mine ? static_cast<T*>(buffer) : dstate_of(s, block);
    bool begun = false;
    int stride = 1;
    for (int i = 0; i < p.num_edges; ++i) {
      const MixedEdge& e = p.edges[i];
      if (e.source != s) continue;
      if (!begun) {
        clear<T>(dmax, image);
        clear<T>(davg, image);
        if (mine) clear(dx, numbers);
        clear<double>(of_pools, 4 * width);
        begun = true;
        stride = e.stride;
      }
      const T* g = gradient_of(e.node, block, i, g_buffer);
      if (e.max_pool >= 0) pool_gradient(factors_of(i, e.max_pool), g, of_pools, dmax);
      if (e.avg_pool >= 0) pool_gradient(factors_of(i, e.avg_pool), g, of_pools + 2 * width, davg);
      if (e.plain >= 0) scaled_sum(g, weight(i, e.plain), davg);
      if (e.skip >= 0 && e.stride == 1) scaled_sum(g, weight(i, e.skip), dx);
      if (p.shared && !last_of(s, i)) continue;  // pools of the same channels are differentiated at once
      const T* x = block_of(s, block, i, x_buffer);
      finish_pool(true, s, stride, block, x, of_pools, pool_bn(s, i, true), dmax);
      finish_pool(false, s, stride, block, x, of_pools + 2 * width, pool_bn(s, i, false), davg);
      max_pool_transposed(x, static_cast<const T*>(dmax), p.Ho, p.Wo, h, w, width, stride, 3, 1, dx);
      avg_pool_transposed(static_cast<const T*>(davg), p.Ho, p.Wo, h, w, width, stride, dx);
      if (!p.direct) this->scatter_add(dx, h * w, block, this->channels(i), grad_state(s));
      begun = false;
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

  void scaled_sum(const T* g, double factor, T* to) const {
    const V a = all(static_cast<T>(factor));
    for (int64_t i = 0; i < image; i += L) store(to + i, load(to + i) + a * load(g + i));
  }

  // The part of a pool's gradient, a * g + q * pool + c, that is the edge's own: a * g to `to`, q and c to `rest`.
  void pool_gradient(const T* factor, const T* g, double* rest, T* to) const {
    for (int64_t i = 0; i < width; i += L) {
      const V a = load(factor + i);
      for (int64_t q = i; q < image; q += width) store(to + q, load(to + q) + a * load(g + q));
    }
    for (int64_t i = 0; i < 2 * width; ++i) rest[i] += static_cast<double>(factor[width + i]);
  }

  // The part that all edges share: to += q * pool + c.
  void finish_pool(bool max, int s, int stride, int64_t block, const T* x, const double* rest, int bn, T* to) const {
    if (bn < 0 || !p.batch_statistics) return;
    const Scratch<T> line(this->columns(s) * width), pooled(p.Wo * width), start(width), factor(3 * width);
    pool_start(bn, start);
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
    hide_missing(block, pixels, to);
  }

  // Of image n: the gradient of the channels that pass by.
  void pass_back(int s, int64_t n) {
    const int64_t h = this->height(s), w = this->columns(s);
    const Scratch<T> factor(p.C);
    T* dx = grad_state(s) + n * h * w * p.C;
    const T* x = state(s) + n * h * w * p.C;
    for (int i = 0; i < p.num_edges; ++i) {
      const MixedEdge& e = p.edges[i];
      if (e.source != s) continue;
      passing(i, static_cast<T>(beta(i)), factor);
      for (int64_t r = 0; r < p.Ho; ++r) {
        const T* g = grad_node(e.node) + (n * p.Ho + r) * p.Wo * p.C;
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
