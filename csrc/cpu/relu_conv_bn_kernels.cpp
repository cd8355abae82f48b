// ReLU, 1x1 convolution, BN, forward and backward, for one instruction set. fastdarts/ops/relu_conv_bn.py has the
// definition, which this must equal. Forward: the convolution minus a pivot (see mixed_cell_kernels.cpp) with BN's
// sums, then one pass that normalises in place. Backward: one pass for BN's two sums, one for the gradients, from x and
// xhat, which is the output where the BN has no affine parameters.
#include "isa.h"
#include "numbers.h"
#include "pointwise.h"
#include "ranks.h"
#include "relu_conv_bn.h"
#include "scratch.h"
#include "stages.h"

namespace fastdarts::ISA {
namespace {

template <typename T>
class Layer {
 protected:
  using V = Vec<T>;
  static constexpr int L = LANES<T>;

  explicit Layer(const LayerPlan& plan)
      : p(plan),
        stride(plan.taps),
        in_vectors((plan.C + L - 1) / L),
        out_vectors((plan.D + L - 1) / L),
        in(in_vectors * L),
        out(out_vectors * L),
        pixels(plan.Ho * plan.Wo),
        tile_rows(TILE / plan.Wo < 1 ? 1 : smaller(TILE / plan.Wo, plan.Ho)) {}

 public:
  int64_t channels() const { return p.D; }
  int64_t values() const { return p.N * pixels; }  // of a channel

 protected:
  const LayerPlan& p;
  const int64_t stride, in_vectors, out_vectors, in, out;  // in, out: numbers of a pixel, whole vectors
  const int64_t pixels, tile_rows;

  T weight(const T* const* weights, int tap, int64_t to, int64_t from) const {
    const int64_t half = p.D / p.taps;
    return to / half == tap ? weights[tap][(to - tap * half) * p.C + from] : T(0);
  }

  // The pixels that output rows r0 .. r1 of image n read through a tap, after the ReLU: (pixels, in).
  void take(const T* x, int64_t n, int tap, int64_t r0, int64_t r1, T* to) const {
    for (int64_t r = r0; r < r1; ++r) {
      const T* row = x + (n * p.H + r * stride + tap) * p.W * p.C;
      for (int64_t c = 0; c < p.Wo; ++c, to += in) {
        const T* from = row + (c * stride + tap) * p.C;
        store(to + in - L, V{});  // the last vector may have lanes without a channel
        each_vector<T>(p.C, [&](auto kind, int64_t i) { store(to + i, rectified(load(from + i, kind))); });
      }
    }
  }
};

constexpr int64_t HERE[] = {0};

template <typename T>
class Forward : Layer<T> {
  using Base = Layer<T>;
  using Base::L, Base::p, Base::in, Base::out, Base::out_vectors, Base::pixels, Base::tile_rows;
  using typename Base::V;

 public:
  Forward(const LayerPlan& plan, const LayerForward<T>& call)
      : Base(plan),
        c(call),
        matrices(plan.taps * plan.C * out),
        start(out),
        sums(plan.N * 2 * out),
        scale(out),
        shift(out),
        gamma(out),
        beta(out) {}

  using Base::channels, Base::values;
  static constexpr Stage STAGE = Stage::relu_conv_bn;

  // The convolution; writes each channel's mean and variance, if they are the batch's.
  void begin(double* mean, double* variance) {
    for (int t = 0; t < p.taps; ++t) {
      for (int64_t i = 0; i < p.C; ++i) {
        for (int64_t o = 0; o < out; ++o) {
          matrices[(t * p.C + i) * out + o] = o < p.D ? this->weight(c.weights, t, o, i) : T(0);
        }
      }
    }
    clear<T>(start, out);
    find_start();
    for_each(p.N, [&](int64_t n) { convolve(n); });
    if (p.batch_statistics) merge(mean, variance);
  }

  static int64_t over_ranks(int64_t sync, int64_t n, int64_t m, double* mean, double* variance) {
    merge_over_ranks(sync, n, m, mean, variance);
    return 1;
  }

  // BN, from the results of begin(), over all ranks.
  void finish(const double* mean, const double* variance, int64_t) {
    if (p.batch_statistics) {
      copy(mean, p.D, c.mean);
      copy(variance, p.D, c.variance);
    }
    for (int64_t o = 0; o < out; ++o) {
      const double r = o < p.D ? 1 / root(c.variance[o] + p.eps) : 0;
      scale[o] = static_cast<T>(r);
      shift[o] = o < p.D ? static_cast<T>((-static_cast<double>(start[o]) - c.mean[o]) * r) : T(0);
      gamma[o] = static_cast<T>(o < p.D && c.scale != nullptr ? c.scale[o] : 1);
      beta[o] = static_cast<T>(o < p.D && c.shift != nullptr ? c.shift[o] : 0);
    }
    for_each(p.N, [&](int64_t n) { normalise(n); });
  }

 private:
  const LayerForward<T>& c;
  const Scratch<T> matrices;      // (taps, C, out)
  const Scratch<T> start;         // minus the pivot
  const Scratch<double> sums;     // (N, 2, out)
  const Scratch<T> scale, shift;  // of the normalisation
  const Scratch<T> gamma, beta;   // of the affine parameters

  // y of output rows r0 .. r1 of image n: (pixels, out).
  void rows(int64_t n, int64_t r0, int64_t r1, T* taken, T* y, T* part) const {
    const int64_t count = (r1 - r0) * p.Wo;
    for (int t = 0; t < p.taps; ++t) {
      this->take(c.x, n, t, r0, r1, taken);
      const bool last = t + 1 == p.taps;
      pointwise<T, 1>({taken, in, HERE, 1, static_cast<int>(p.C), matrices + t * p.C * out, out_vectors,
                       t == 0 ? Start::vector : Start::output, start, y, out, last ? part : nullptr},
                      count);
    }
  }

  void find_start() {
    if (!p.batch_statistics) {
      for (int64_t o = 0; o < p.D; ++o) start[o] = static_cast<T>(-c.mean[o]);
      return;
    }
    const Scratch<T> taken(p.Wo * in), y(p.Wo * out);
    rows(0, 0, 1, taken, y, nullptr);
    for (int64_t o = 0; o < p.D; ++o) {
      double sum = 0;
      for (int64_t q = 0; q < p.Wo; ++q) sum += static_cast<double>(y[q * out + o]);
      start[o] = static_cast<T>(-sum / static_cast<double>(p.Wo));
    }
  }

  void convolve(int64_t n) {
    const Scratch<T> taken(tile_rows * p.Wo * in), tile(tile_rows * p.Wo * out), part(2 * out);
    double* into = sums + n * 2 * out;
    clear(into, 2 * out);
    clear<T>(part, 2 * out);
    for (int64_t r = 0; r < p.Ho; r += tile_rows) {
      const int64_t end = smaller(p.Ho, r + tile_rows);
      T* to = c.normalised + (n * pixels + r * p.Wo) * p.D;
      rows(n, r, end, taken, p.D == out ? to : static_cast<T*>(tile),
           p.batch_statistics ? static_cast<T*>(part) : nullptr);
      if (p.D != out) copy_pixels<T>(tile, out, (end - r) * p.Wo, p.D, to, p.D);
      if (p.batch_statistics) fold<T>(part, into, 2 * out);
    }
  }

  void merge(double* means, double* variances) const {
    const double m = static_cast<double>(values());
    for (int64_t o = 0; o < p.D; ++o) {
      double sum = 0, squares = 0;
      for (int64_t n = 0; n < p.N; ++n) {
        sum += sums[n * 2 * out + o];
        squares += sums[n * 2 * out + out + o];
      }
      const double mean = sum / m, variance = squares / m - mean * mean;
      means[o] = mean - static_cast<double>(start[o]);
      variances[o] = variance < 0 ? 0 : variance;
    }
  }

  void normalise(int64_t n) const {
    T* xhat = c.normalised + n * pixels * p.D;
    T* image = c.out + n * pixels * p.D;
    for (int64_t q = 0; q < pixels; ++q, image += p.D, xhat += p.D) {
      const auto put = [&](auto y, int64_t o) {
        const auto value = y * load(scale + o, y) + load(shift + o, y);
        store(xhat + o, value);
        if (c.scale != nullptr) store(image + o, value * load(gamma + o, y) + load(beta + o, y));
      };
      const V last = p.D < L ? V{} : load(xhat + p.D - L);  // before the vectors that it overlaps
      int64_t o = 0;
      for (; o + L <= p.D; o += L) put(load(xhat + o), o);
      if (o == p.D) continue;
      if (p.D >= L) put(last, p.D - L);
      for (; p.D < L && o < p.D; ++o) put(xhat[o], o);
    }
  }
};

template <typename T>
class Backward : Layer<T> {
  using Base = Layer<T>;
  using Base::L, Base::p, Base::in, Base::out, Base::in_vectors, Base::out_vectors, Base::pixels, Base::tile_rows,
      Base::stride;
  using typename Base::V;

 public:
  Backward(const LayerPlan& plan, const LayerBackward<T>& call)
      : Base(plan),
        c(call),
        chunks(smaller(CHUNKS, plan.N)),
        matrices(plan.taps * plan.D * in),
        sums(plan.N * 2 * out),
        factor(3 * out),
        parts(call.grad_weights == nullptr ? 0 : chunks * plan.taps * plan.D * in) {}

  using Base::channels, Base::values;
  static constexpr Stage STAGE = Stage::relu_conv_bn_backward;

  // BN's two sums of each channel: of g, of g * xhat.
  void begin(double* s0, double* s1) {
    for (int t = 0; t < p.taps; ++t) {
      for (int64_t o = 0; o < p.D; ++o) {
        for (int64_t i = 0; i < in; ++i) {
          matrices[(t * p.D + o) * in + i] = i < p.C ? this->weight(c.weights, t, o, i) : T(0);
        }
      }
    }
    for_each(p.N, [&](int64_t n) { take_sums(n); });
    clear(s0, p.D);
    clear(s1, p.D);
    for (int64_t o = 0; o < p.D; ++o) {
      for (int64_t n = 0; n < p.N; ++n) {
        s0[o] += sums[n * 2 * out + o];
        s1[o] += sums[n * 2 * out + out + o];
      }
      if (c.grad_scale == nullptr) continue;
      c.grad_scale[o] = s1[o];
      c.grad_shift[o] = s0[o];
    }
  }

  static int64_t over_ranks(int64_t sync, int64_t n, int64_t, double* s0, double*) {
    return sum_over_ranks(sync, 2 * n, s0);
  }

  // The gradients, from the sums over that many ranks.
  void finish(const double* s0, const double* s1, int64_t ranks) {
    use_sums(s0, s1, static_cast<double>(values() * ranks));
    for_each(chunks, [&](int64_t chunk) { gradients(chunk); });
    if (c.grad_weights != nullptr) {
      for_each(p.D, [&](int64_t o) { collect(o); });
    }
  }

 private:
  const LayerBackward<T>& c;
  const int64_t chunks;
  const Scratch<T> matrices;   // (taps, D, in)
  const Scratch<double> sums;  // (N, 2, out): of g, of g * xhat
  const Scratch<T> factor;     // (3, out): a, q, c of dL/dy = a * g + q * xhat + c
  const Scratch<T> parts;      // (chunks, taps, D, in)

  void take_sums(int64_t n) {
    double* into = sums + n * 2 * out;
    clear(into, 2 * out);
    if (!p.batch_statistics && c.grad_scale == nullptr) return;
    const T* g = c.grad + n * pixels * p.D;
    const T* xhat = c.normalised + n * pixels * p.D;
    const Scratch<T> part(2 * out);
    clear<T>(part, 2 * out);
    for (int64_t from = 0; from < pixels; from += TILE) {
      const int64_t to = smaller(pixels, from + TILE);
      each_vector<T>(p.D, [&](auto kind, int64_t o) {
        auto sum = kind, product = kind;
        for (int64_t q = from; q < to; ++q) {
          const auto grad = load(g + q * p.D + o, kind);
          sum += grad;
          product += grad * load(xhat + q * p.D + o, kind);
        }
        store(part + o, sum);
        store(part + out + o, product);
      });
      fold<T>(part, into, 2 * out);
    }
  }

  void use_sums(const double* s0, const double* s1, double m) {
    clear<T>(factor, 3 * out);
    for (int64_t o = 0; o < p.D; ++o) {
      const double r = (c.scale == nullptr ? 1 : c.scale[o]) / root(c.variance[o] + p.eps);
      factor[o] = static_cast<T>(r);
      if (!p.batch_statistics) continue;
      factor[out + o] = static_cast<T>(-r * s1[o] / m);
      factor[2 * out + o] = static_cast<T>(-r * s0[o] / m);
    }
  }

  void gradients(int64_t chunk) {
    const int64_t tile = tile_rows * p.Wo;
    const Scratch<T> taken(tile * in), dy(tile * out), dx(tile * in);
    T* part = c.grad_weights == nullptr ? nullptr : parts + chunk * p.taps * p.D * in;
    if (part != nullptr) clear(part, p.taps * p.D * in);
    for (int64_t n = chunk * p.N / chunks; n < (chunk + 1) * p.N / chunks; ++n) {
      if (c.grad_x != nullptr && p.taps > 1) clear(c.grad_x + n * p.H * p.W * p.C, p.H * p.W * p.C);
      for (int64_t r = 0; r < p.Ho; r += tile_rows) {
        const int64_t end = smaller(p.Ho, r + tile_rows), count = (end - r) * p.Wo;
        gradient_tile(n * pixels + r * p.Wo, count, dy);
        for (int t = 0; t < p.taps; ++t) {
          this->take(c.x, n, t, r, end, taken);
          if (part != nullptr) {
            const int64_t half = p.D / p.taps;
            outer<T, 1>(dy + t * half, out, static_cast<int>(half), taken, in, in_vectors, count,
                        part + (t * p.D + t * half) * in);
          }
          if (c.grad_x == nullptr) continue;
          pointwise<T, 1>({dy, out, HERE, 1, static_cast<int>(p.D), matrices + t * p.D * in, in_vectors, Start::zero,
                           nullptr, dx, in, nullptr},
                          count);
          put(n, t, r, end, taken, dx);
        }
      }
    }
  }

  // dL/dy of `count` pixels; lanes without a channel are not written: no product reads them.
  void gradient_tile(int64_t pixel, int64_t count, T* dy) const {
    const T* g = c.grad + pixel * p.D;
    const T* xhat = c.normalised + pixel * p.D;
    each_vector<T>(p.D, [&](auto kind, int64_t o) {
      const auto a = load(factor + o, kind), q = load(factor + out + o, kind),
                 constant = load(factor + 2 * out + o, kind);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = i * p.D + o;
        store(dy + i * out + o, a * load(g + at, kind) + (q * load(xhat + at, kind) + constant));
      }
    });
  }

  // Scatters the gradient of a tap's input, where the ReLU passed it.
  void put(int64_t n, int tap, int64_t r0, int64_t r1, const T* taken, const T* dx) const {
    for (int64_t r = r0; r < r1; ++r) {
      T* row = c.grad_x + (n * p.H + r * stride + tap) * p.W * p.C;
      for (int64_t q = 0; q < p.Wo; ++q, taken += in, dx += in) {
        T* to = row + (q * stride + tap) * p.C;
        each_vector<T>(
            p.C, [&](auto kind, int64_t i) { store(to + i, load(taken + i, kind) > 0 ? load(dx + i, kind) : kind); });
      }
    }
  }

  void collect(int64_t o) {
    const int64_t half = p.D / p.taps, tap = o / half;
    for (int64_t i = 0; i < p.C; ++i) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        sum += static_cast<double>(parts[((chunk * p.taps + tap) * p.D + o) * in + i]);
      }
      c.grad_weights[tap][(o - tap * half) * p.C + i] = static_cast<T>(sum);
    }
  }
};

// Each layer's two numbers a channel: all first ones, then all second ones.
template <typename Direction>
void run_together(Direction* const* layers, int count, int64_t sync) {
  int64_t n = 0;
  for (int i = 0; i < count; ++i) n += layers[i]->channels();
  const Scratch<double> numbers(2 * n);
  double *first = numbers, *second = numbers + n;
  for (int64_t i = 0, at = 0; i < count; at += layers[i]->channels(), ++i) {
    layers[i]->begin(first + at, second + at);
  }
  const int64_t ranks = sync == 0 ? 1 : Direction::over_ranks(sync, n, layers[0]->values(), first, second);
  for (int64_t i = 0, at = 0; i < count; at += layers[i]->channels(), ++i) {
    layers[i]->finish(first + at, second + at, ranks);
  }
}

template <typename T, template <typename> class Direction, typename Call>
void run(const LayerPlan* plans, const Call* calls, int layers, int64_t sync) {
  const Timed timed(Direction<T>::STAGE);
  Direction<T> first(plans[0], calls[0]);
  if (layers == 1) {
    Direction<T>* const alone[] = {&first};
    return run_together(alone, 1, sync);
  }
  Direction<T> second(plans[1], calls[1]);
  Direction<T>* const both[] = {&first, &second};
  run_together(both, 2, sync);
}

}  // namespace

const LayerKernels layer_kernels = {
    run<float, Forward, LayerForward<float>>,
    run<double, Forward, LayerForward<double>>,
    run<float, Backward, LayerBackward<float>>,
    run<double, Backward, LayerBackward<double>>,
};

}  // namespace fastdarts::ISA
