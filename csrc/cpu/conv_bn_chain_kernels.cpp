// One layer of a chain of 3x3 convolutions with BN, forward and backward, for one instruction set.
// fastdarts/ops/conv_bn_chain.py has the definition, which this must equal.
//
// A layer stores only its convolution y minus a pivot (see mixed_cell_kernels.cpp). The same lines, forward and
// backward, compute BN and the next convolution's ReLU row by row on read. Backward: one
// pass for BN's two sums, then, image by image, dL/dy, the weights' gradient and the transposed convolution.
#include "conv_bn_chain.h"
#include "isa.h"
#include "numbers.h"
#include "pointwise.h"
#include "ranks.h"
#include "scratch.h"

namespace fastdarts::ISA {
namespace {

constexpr int64_t KERNEL = 3;

// W copies of C per-channel numbers, for a whole row at once.
template <typename T>
void repeat(const T* channel, int64_t C, int64_t W, T* row) {
  for (int64_t w = 0; w < W; ++w) copy(channel, C, row + w * C);
}

// to = a * x + (q * y + c), n numbers. With q nullptr: a * x + c.
template <typename T>
void combine(int64_t n, const T* a, const T* x, const T* q, const T* y, const T* c, T* to) {
  int64_t i = 0;
  if (q == nullptr) {
    for (; i + LANES<T> <= n; i += LANES<T>) store(to + i, load(a + i) * load(x + i) + load(c + i));
    for (; i < n; ++i) to[i] = a[i] * x[i] + c[i];
    return;
  }
  for (; i + LANES<T> <= n; i += LANES<T>) {
    store(to + i, load(a + i) * load(x + i) + (load(q + i) * load(y + i) + load(c + i)));
  }
  for (; i < n; ++i) to[i] = a[i] * x[i] + (q[i] * y[i] + c[i]);
}

template <typename T>
void affine(int64_t D, double eps, const T* norm_weight, const T* norm_bias, const double* variance,
            const double* centre, T* scale, T* shift) {
  for (int64_t d = 0; d < D; ++d) {
    const double a = static_cast<double>(norm_weight[d]) / root(variance[d] + eps);
    scale[d] = static_cast<T>(a);
    shift[d] = static_cast<T>(static_cast<double>(norm_bias[d]) - a * centre[d]);
  }
}

template <typename T>
class Link {
 protected:
  static constexpr int L = LANES<T>;

  Link(const LinkPlan& plan, const LinkInput<T>& in)
      : p(plan),
        input(in),
        out_vectors((plan.D + L - 1) / L),
        out(out_vectors * L),
        row(plan.W * plan.C),
        slot(row + 2 * plan.C + L),
        scale(in.scale == nullptr ? 0 : row),
        shift(in.scale == nullptr ? 0 : row) {
    if (in.scale == nullptr) return;
    repeat(in.scale, plan.C, plan.W, static_cast<T*>(scale));
    repeat(in.shift, plan.C, plan.W, static_cast<T*>(shift));
  }

  const LinkPlan& p;
  const LinkInput<T>& input;
  const int64_t out_vectors, out;  // out: numbers of an output pixel, whole vectors
  const int64_t row, slot;         // numbers of an input row; with its border
  const Scratch<T> scale, shift;   // of a whole row

  // Row r of image n as the convolution reads it; `to` holds a row.
  void activate(int64_t n, int64_t r, T* to) const {
    const T* from = input.data + (n * p.H + r) * row;
    if (input.scale == nullptr) return copy(from, row, to);
    combine<T>(row, scale, from, nullptr, nullptr, shift, to);
    int64_t i = 0;
    for (; i + L <= row; i += L) store(to + i, rectified(load(to + i)));
    for (; i < row; ++i) to[i] = to[i] < 0 ? T(0) : to[i];
  }

  // The three input rows that an output row reads, with their border, as they come by.
  class Window {
   public:
    explicit Window(const Link& link) : link_(link), rows_(KERNEL * link.slot) {}

    // For output row r of image n; offsets()[k] is the offset of row k in data().
    void move(int64_t n, int64_t r) {
      for (int64_t k = 0; k < KERNEL; ++k) {
        const int64_t i = r * link_.p.stride + k - 1, place = (i + KERNEL) % KERNEL;
        offsets_[k] = place * link_.slot;
        if (held_[place] == i && image_[place] == n) continue;
        T* to = rows_ + offsets_[k];
        clear(to, link_.slot);
        if (i >= 0 && i < link_.p.H) link_.activate(n, i, to + link_.p.C);
        held_[place] = i;
        image_[place] = n;
      }
    }
    const T* data() const { return rows_; }
    const int64_t* offsets() const { return offsets_; }

   private:
    const Link& link_;
    const Scratch<T> rows_;
    int64_t offsets_[KERNEL] = {}, held_[KERNEL] = {}, image_[KERNEL] = {-1, -1, -1};
  };
};

template <typename T>
class Forward : Link<T> {
  using Base = Link<T>;
  using Base::L, Base::p, Base::out, Base::out_vectors;
  using Window = typename Base::Window;

 public:
  Forward(const LinkPlan& plan, const LinkForward<T>& call)
      : Base(plan, call.in),
        c(call),
        matrix(KERNEL * KERNEL * plan.C * out),
        start(out),
        sums(plan.N * 2 * out),
        out_row(plan.Wo * plan.D),
        scale(out_row),
        shift(out_row) {}

  void run() {
    for (int64_t k = 0; k < KERNEL * KERNEL; ++k) {
      for (int64_t i = 0; i < p.C; ++i) {
        T* to = matrix + (k * p.C + i) * out;
        for (int64_t o = 0; o < out; ++o) to[o] = o < p.D ? c.weight[(o * p.C + i) * KERNEL * KERNEL + k] : T(0);
      }
    }
    clear<T>(start, out);
    find_start();
    for_each(p.N, [&](int64_t n) { convolve(n); });
    merge();
    affine(p.D, p.eps, c.norm_weight, c.norm_bias, c.variance, c.centre, c.scale, c.shift);
    if (c.out == nullptr) return;
    repeat(c.scale, p.D, p.Wo, static_cast<T*>(scale));
    repeat(c.shift, p.D, p.Wo, static_cast<T*>(shift));
    for_each(p.N * p.Ho, [&](int64_t r) {
      combine<T>(out_row, scale, c.y + r * out_row, nullptr, nullptr, shift, c.out + r * out_row);
    });
  }

 private:
  const LinkForward<T>& c;
  const Scratch<T> matrix;     // (KERNEL * KERNEL * C, out)
  const Scratch<T> start;      // minus the pivot
  const Scratch<double> sums;  // (N, 2, out)
  const int64_t out_row;       // numbers of an output row
  const Scratch<T> scale, shift;

  // y of output row r of image n: (Wo, out).
  void convolve_row(int64_t n, int64_t r, Window& window, T* to, T* part) const {
    window.move(n, r);
    pointwise<T, 1>({window.data(), p.stride * p.C, window.offsets(), KERNEL, static_cast<int>(KERNEL * p.C), matrix,
                     out_vectors, Start::vector, start, to, out, part},
                    p.Wo);
  }

  void find_start() {
    if (!p.batch_statistics) {
      for (int64_t o = 0; o < p.D; ++o) start[o] = static_cast<T>(-c.mean[o]);
      return;
    }
    Window window(*this);
    const Scratch<T> to(p.Wo * out);
    convolve_row(0, p.Ho / 2, window, to, nullptr);
    for (int64_t o = 0; o < p.D; ++o) {
      double sum = 0;
      for (int64_t q = 0; q < p.Wo; ++q) sum += static_cast<double>(to[q * out + o]);
      start[o] = static_cast<T>(-sum / static_cast<double>(p.Wo));
    }
  }

  void convolve(int64_t n) {
    Window window(*this);
    const Scratch<T> wide(p.D == out ? 0 : p.Wo * out), part(2 * out);
    double* into = sums + n * 2 * out;
    clear(into, 2 * out);
    clear<T>(part, 2 * out);
    for (int64_t r = 0; r < p.Ho; ++r) {
      T* to = c.y + (n * p.Ho + r) * out_row;
      convolve_row(n, r, window, p.D == out ? to : static_cast<T*>(wide),
                   p.batch_statistics ? static_cast<T*>(part) : nullptr);
      if (p.D != out) copy_pixels<T>(wide, out, p.Wo, p.D, to, p.D);
      if (p.batch_statistics) fold<T>(part, into, 2 * out);
    }
  }

  void merge() {
    const double m = static_cast<double>(p.N * p.Ho * p.Wo);
    for (int64_t o = 0; o < p.D; ++o) {
      const double pivot = -static_cast<double>(start[o]);
      if (!p.batch_statistics) {
        c.centre[o] = c.mean[o] - pivot;
        continue;
      }
      double sum = 0, squares = 0;
      for (int64_t n = 0; n < p.N; ++n) {
        sum += sums[n * 2 * out + o];
        squares += sums[n * 2 * out + out + o];
      }
      const double centre = sum / m, variance = squares / m - centre * centre;
      c.centre[o] = centre;
      c.mean[o] = centre + pivot;
      c.variance[o] = variance < 0 ? 0 : variance;
    }
    if (p.sync == 0) return;
    merge_over_ranks(p.sync, p.D, p.N * p.Ho * p.Wo, c.mean, c.variance);
    for (int64_t o = 0; o < p.D; ++o) c.centre[o] = c.mean[o] + static_cast<double>(start[o]);
  }
};

template <typename T>
class Backward : Link<T> {
  using Base = Link<T>;
  using Base::L, Base::p, Base::out, Base::row;
  using Window = typename Base::Window;

 public:
  Backward(const LinkPlan& plan, const LinkBackward<T>& call)
      : Base(plan, call.in),
        c(call),
        in_vectors((plan.C + L - 1) / L),
        in(in_vectors * L),
        patch_vectors((KERNEL * plan.C + L - 1) / L),
        patch(patch_vectors * L),
        out_row(plan.Wo * plan.D),
        dy_row(out_row + 2 * plan.D),
        chunks(smaller(CHUNKS, plan.N)),
        sums(plan.N * 2 * plan.D),
        factors(3 * out_row),
        matrix(call.grad_in == nullptr ? 0 : KERNEL * KERNEL * plan.D * in),
        parts(call.grad_weight == nullptr ? 0 : chunks * KERNEL * plan.D * patch) {}

  void run() {
    for_each(p.N, [&](int64_t n) { take_sums(n); });
    use_sums();
    if (c.grad_in != nullptr) arrange();
    for_each(chunks, [&](int64_t chunk) { gradients(chunk); });
    if (c.grad_weight != nullptr) {
      for_each(p.D, [&](int64_t d) { collect(d); });
    }
  }

 private:
  // The taps that pixels (r, c) of the input with r % stride = a, c % stride = b belong to.
  struct Taps {
    int count = 0;
    const T* matrix = nullptr;                                // (count, D, in)
    int64_t rows[KERNEL * KERNEL], columns[KERNEL * KERNEL];  // offset of each one's dy, from pixel (r, c) / stride
  };

  const LinkBackward<T>& c;
  const int64_t in_vectors, in;        // in: numbers of an input pixel, whole vectors
  const int64_t patch_vectors, patch;  // of a row of the convolution's window
  const int64_t out_row, dy_row;       // numbers of an output row; with a border
  const int64_t chunks;
  const Scratch<double> sums;  // (N, 2, D): of grad, of grad * y
  const Scratch<T> factors;    // (3, Wo, D): a, q, c of dL/dy = a * grad + q * y + c
  const Scratch<T> matrix;     // the transposed kernel, Taps by Taps
  const Scratch<T> parts;      // (chunks, KERNEL, D, patch)
  Taps taps[2][2];

  void take_sums(int64_t n) {
    const Scratch<T> part(2 * out_row);
    clear<T>(part, 2 * out_row);
    T *first = part, *second = part + out_row;
    for (int64_t r = n * p.Ho; r < (n + 1) * p.Ho; ++r) {
      const T *g = c.grad + r * out_row, *y = c.y + r * out_row;
      int64_t i = 0;
      for (; i + L <= out_row; i += L) {
        const Vec<T> grad = load(g + i);
        store(first + i, load(first + i) + grad);
        store(second + i, load(second + i) + grad * load(y + i));
      }
      for (; i < out_row; ++i) {
        first[i] += g[i];
        second[i] += g[i] * y[i];
      }
    }
    double* into = sums + n * 2 * p.D;
    clear(into, 2 * p.D);
    for (int64_t i = 0; i < out_row; i += p.D) {
      for (int64_t d = 0; d < p.D; ++d) {
        into[d] += static_cast<double>(first[i + d]);
        into[p.D + d] += static_cast<double>(second[i + d]);
      }
    }
  }

  void use_sums() {
    const Scratch<T> channel(3 * p.D);
    const Scratch<double> totals(2 * p.D);  // of grad, of grad * xhat
    double *s0 = totals, *s1 = totals + p.D;
    clear<double>(totals, 2 * p.D);
    for (int64_t d = 0; d < p.D; ++d) {
      for (int64_t n = 0; n < p.N; ++n) {
        s0[d] += sums[n * 2 * p.D + d];
        s1[d] += sums[n * 2 * p.D + p.D + d];
      }
      s1[d] = (s1[d] - c.centre[d] * s0[d]) / root(c.variance[d] + p.eps);
      if (c.grad_weight == nullptr) continue;
      c.grad_norm_weight[d] = static_cast<T>(s1[d]);
      c.grad_norm_bias[d] = static_cast<T>(s0[d]);
    }
    const int64_t ranks = p.sync == 0 ? 1 : sum_over_ranks(p.sync, 2 * p.D, totals);
    const double m = static_cast<double>(p.N * p.Ho * p.Wo * ranks);
    for (int64_t d = 0; d < p.D; ++d) {
      const double r = 1 / root(c.variance[d] + p.eps), a = static_cast<double>(c.norm_weight[d]) * r;
      const double q = p.batch_statistics ? -a * r * s1[d] / m : 0;
      channel[d] = static_cast<T>(a);
      channel[p.D + d] = static_cast<T>(q);
      channel[2 * p.D + d] = static_cast<T>(p.batch_statistics ? -a * s0[d] / m - q * c.centre[d] : 0);
    }
    for (int i = 0; i < 3; ++i) repeat<T>(channel + i * p.D, p.D, p.Wo, factors + i * out_row);
  }

  // Input row r meets output row (r + 1 - k) / stride by kernel row k, where that division leaves nothing.
  void arrange() {
    T* to = matrix;
    for (int64_t a = 0; a < p.stride; ++a) {
      for (int64_t b = 0; b < p.stride; ++b) {
        Taps& t = taps[a][b];
        t.matrix = to;
        for (int64_t k = 0; k < KERNEL * KERNEL; ++k) {
          const int64_t down = a + 1 - k / KERNEL, right = b + 1 - k % KERNEL;
          if (down % p.stride != 0 || right % p.stride != 0) continue;
          t.rows[t.count] = down / p.stride;
          t.columns[t.count] = right / p.stride;
          ++t.count;
          for (int64_t d = 0; d < p.D; ++d, to += in) {
            for (int64_t i = 0; i < in; ++i) {
              to[i] = i < p.C ? c.weight[(d * p.C + i) * KERNEL * KERNEL + k] : T(0);
            }
          }
        }
      }
    }
  }

  void gradients(int64_t chunk) {
    Window window(*this);
    const Scratch<T> dy((p.Ho + 2) * dy_row), narrow(p.W * in), read(row);
    clear<T>(dy, (p.Ho + 2) * dy_row);
    T* part = c.grad_weight == nullptr ? nullptr : parts + chunk * KERNEL * p.D * patch;
    if (part != nullptr) clear(part, KERNEL * p.D * patch);
    for (int64_t n = chunk * p.N / chunks; n < (chunk + 1) * p.N / chunks; ++n) {
      for (int64_t r = 0; r < p.Ho; ++r) {
        const int64_t at = (n * p.Ho + r) * out_row;
        T* to = dy + (r + 1) * dy_row + p.D;
        combine<T>(out_row, factors, c.grad + at, factors + out_row, c.y + at, factors + 2 * out_row, to);
        if (part == nullptr) continue;
        window.move(n, r);
        for (int64_t k = 0; k < KERNEL; ++k) {
          outer<T, 1>(to, p.D, static_cast<int>(p.D), window.data() + window.offsets()[k], p.stride * p.C,
                      patch_vectors, p.Wo, part + k * p.D * patch);
        }
      }
      if (c.grad_in == nullptr) continue;
      for (int64_t r = 0; r < p.H; ++r) transpose_row(n, r, dy, narrow, read);
    }
  }

  // Row r of image n of grad_in; dy has a border of zeros.
  void transpose_row(int64_t n, int64_t r, const T* dy, T* narrow, T* read) const {
    T* to = c.grad_in + (n * p.H + r) * row;
    for (int64_t b = 0; b < p.stride && b < p.W; ++b) {
      const Taps& t = taps[r % p.stride][b];
      int64_t offsets[KERNEL * KERNEL];
      for (int k = 0; k < t.count; ++k) {
        offsets[k] = (r / p.stride + t.rows[k] + 1) * dy_row + (t.columns[k] + 1) * p.D;
      }
      const bool whole = p.C == in;
      const int64_t pixels = (p.W - b + p.stride - 1) / p.stride;
      pointwise<T, 1>({dy, p.D, offsets, t.count, static_cast<int>(p.D), t.matrix, in_vectors, Start::zero, nullptr,
                       whole ? to + b * p.C : narrow, whole ? p.stride * p.C : in, nullptr},
                      pixels);
      if (!whole) copy_pixels<T>(narrow, in, pixels, p.C, to + b * p.C, p.stride * p.C);
    }
    if (c.in.scale != nullptr) {
      this->activate(n, r, read);
      int64_t i = 0;
      for (; i + L <= row; i += L) store(to + i, load(read + i) > 0 ? load(to + i) : Vec<T>{});
      for (; i < row; ++i) to[i] = read[i] > 0 ? to[i] : T(0);
    }
    if (c.more == nullptr) return;
    const T* more = c.more + (n * p.H + r) * row;
    int64_t i = 0;
    for (; i + L <= row; i += L) store(to + i, load(to + i) + load(more + i));
    for (; i < row; ++i) to[i] += more[i];
  }

  void collect(int64_t d) {
    for (int64_t k = 0; k < KERNEL; ++k) {
      for (int64_t i = 0; i < KERNEL * p.C; ++i) {
        double sum = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          sum += static_cast<double>(parts[((chunk * KERNEL + k) * p.D + d) * patch + i]);
        }
        c.grad_weight[(d * p.C + i % p.C) * KERNEL * KERNEL + k * KERNEL + i / p.C] = static_cast<T>(sum);
      }
    }
  }
};

template <typename T, template <typename> class Direction, typename Call>
void run(const LinkPlan& plan, const Call& call) {
  Direction<T>(plan, call).run();
}

}  // namespace

const LinkKernels link_kernels = {
    run<float, Forward, LinkForward<float>>,
    run<double, Forward, LinkForward<double>>,
    run<float, Backward, LinkBackward<float>>,
    run<double, Backward, LinkBackward<double>>,
    affine<float>,
    affine<double>,
};

}  // namespace fastdarts::ISA
