// Masked L1 or L2 loss of an upsampled sum of low-resolution levels, with its gradient, in one pass over the pixels,
// row by row, without buffers of the images' size. fastdarts/ops/masked_loss.py documents the arguments and has
// the definition.
//
// Notation: N images of H x W pixels, levels of h x w, rows x cols patches of p x p pixels, T the dtype of the levels.
#include "masked_loss.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <tuple>
#include <vector>

#include "isa.h"
#include "normalise.h"
#include "tensors.h"

namespace fastdarts::masked_loss {
namespace {

struct Batch {
  at::TensorList levels;
  at::Tensor bias, images, flip, mask;
  at::ArrayRef<double> mean, std;
  bool l2;

  int64_t count() const { return images.size(0); }
  int64_t height() const { return images.size(1); }
  int64_t width() const { return images.size(2); }
  int64_t rows() const { return mask.size(1); }
  int64_t cols() const { return mask.size(2); }
  int64_t patch() const { return height() / rows(); }
};

struct Result {
  at::Tensor loss;
  std::vector<at::Tensor> grad_levels;  // none where no gradient is asked for
  at::Tensor grad_bias;
};

// n numbers that begin at a cache line, zeros at first.
template <typename T>
class Aligned {
 public:
  explicit Aligned(int64_t n) : lines_((n * sizeof(T) + sizeof(CacheLine) - 1) / sizeof(CacheLine)) {}
  T* data() { return reinterpret_cast<T*>(lines_.data()); }

 private:
  struct alignas(64) CacheLine {
    std::byte bytes[64];
  };
  std::vector<CacheLine> lines_;
};

// The cells that bilinear interpolation of `in` numbers to `out` (align_corners=False) reads for number i.
struct Place {
  int64_t near, far;
  double share;  // of far

  Place(int64_t i, int64_t in, int64_t out) {
    const double at = std::max(static_cast<double>(in) / out * (i + 0.5) - 0.5, 0.0);
    near = std::min(static_cast<int64_t>(at), in - 1);
    share = near == in - 1 ? 0.0 : at - near;
    far = share == 0 ? near : near + 1;
  }
};

// The columns around each number of a row of `width` pixels; mirrored: the row is stored from right to left.
template <typename T>
struct ColumnTable {
  std::vector<int32_t> near, far;
  std::vector<T> share;

  ColumnTable(int64_t in, int64_t width, bool mirrored) {
    for (int64_t i = 0; i < 3 * width; ++i) {
      const Place place(mirrored ? width - 1 - i / 3 : i / 3, in, width);
      near.push_back(3 * place.near + i % 3);
      far.push_back(3 * place.far + i % 3);
      share.push_back(place.share);
    }
  }
  Columns<T> get() const { return {near.data(), far.data(), share.data()}; }
};

// Shared by all images.
template <typename T>
struct Common {
  const Kernels<T>& kernels;
  Normalise<T> normalise;
  int64_t numbers, padded;      // of a row: 3 * W, and whole blocks
  std::vector<T> shift, scale;  // of each number of a row: the target is (pixel - shift) * scale
  std::vector<T> bias;          // of each number of a block
  double gradient;              // factor of a sum of signs (l1) or errors (l2)

  Common(const Kernels<T>& kernels, Normalise<T> normalise, const Batch& batch, double terms)
      : kernels(kernels),
        normalise(normalise),
        numbers(3 * batch.width()),
        gradient(terms > 0 ? (batch.l2 ? 2 : 1) / terms : 0) {
    padded = (numbers + kernels.block - 1) / kernels.block * kernels.block;
    for (int64_t i = 0; i < padded; ++i) {
      shift.push_back(255.0 * batch.mean[i % 3]);
      scale.push_back(1.0 / (255.0 * batch.std[i % 3]));
      bias.push_back(batch.bias.const_data_ptr<T>()[i % 3 * batch.bias.stride(0)]);
    }
  }
};

template <typename T>
struct Level {
  at::Tensor value, grad;  // grad is undefined where none is asked for
  std::vector<Place> rows;
  ColumnTable<T> columns[2];  // [mirrored]

  Level(const at::Tensor& value, const at::Tensor& grad, const Batch& batch)
      : value(value), grad(grad), columns{{value.size(3), batch.width(), false}, {value.size(3), batch.width(), true}} {
    for (int64_t y = 0; y < batch.height(); ++y) rows.emplace_back(y, value.size(2), batch.height());
  }
};

// The two rows of a level around a row of pixels, each expanded to the width of the image: row r in slot
// r % 2. Pixels come from top to bottom, so each row is expanded once; its gradient is folded back when it is replaced.
template <typename T>
class Window {
 public:
  Window(const Level<T>& level, const Common<T>& common)
      : level_(level), common_(common), low_(3 * level.value.size(3)), sums_(low_.size()) {
    for (int i = 0; i < 2; ++i) slots_.push_back({-1, Aligned<T>(common.padded), Aligned<T>(common.padded)});
  }

  void begin(int64_t image, bool mirrored) {
    image_ = image;
    columns_ = level_.columns[mirrored].get();
  }

  Rows<T> at(int64_t y) {
    const Place& place = level_.rows[y];
    Slot &near = hold(place.near), &far = hold(place.far);
    return {near.row.data(), far.row.data(), near.grad.data(), far.grad.data(), static_cast<T>(place.share)};
  }

  void end() {
    for (Slot& slot : slots_) leave(slot);
  }

 private:
  struct Slot {
    int64_t held;  // a row of the level, -1: none
    Aligned<T> row, grad;
  };

  Slot& hold(int64_t row) {
    Slot& slot = slots_[row % 2];
    if (slot.held == row) return slot;
    leave(slot);
    slot.held = row;
    each(level_.value, level_.value.template const_data_ptr<T>(), row,
         [&](const T& value, int64_t i) { low_[i] = value; });
    common_.kernels.expand(columns_, low_.data(), slot.row.data(), common_.numbers);
    std::fill_n(slot.grad.data(), common_.padded, T{0});
    return slot;
  }

  void leave(Slot& slot) {
    if (slot.held >= 0 && level_.grad.defined()) {
      std::fill(sums_.begin(), sums_.end(), 0.0);
      common_.kernels.fold(columns_, slot.grad.data(), sums_.data(), common_.numbers);
      each(level_.grad, level_.grad.template mutable_data_ptr<T>(), slot.held,
           [&](T& grad, int64_t i) { grad = common_.gradient * sums_[i]; });
    }
    slot.held = -1;
  }

  // body(number, 3 * x + c) for the numbers of this image's row of a tensor (N, 3, h, w).
  template <typename Number, typename Body>
  void each(const at::Tensor& of, Number* data, int64_t row, Body body) {
    data += image_ * of.stride(0) + row * of.stride(2);
    const int64_t w = of.size(3), c_stride = of.stride(1), x_stride = of.stride(3);
    for (int64_t x = 0; x < w; ++x) {
      for (int64_t c = 0; c < 3; ++c) body(data[c * c_stride + x * x_stride], 3 * x + c);
    }
  }

  const Level<T>& level_;
  const Common<T>& common_;
  int64_t image_ = 0;
  Columns<T> columns_{};
  std::vector<T> low_;
  std::vector<double> sums_;
  std::vector<Slot> slots_;
};

// Of one image or of all: errors, and the sums by colour for the bias' gradient.
struct Sums {
  double loss = 0, colours[3] = {};
};

// A thread's buffers, reused for each of its images.
template <typename T>
class Worker {
 public:
  Worker(const Batch& batch, const std::vector<Level<T>>& levels, const Common<T>& common)
      : batch_(batch),
        common_(common),
        compare_(common.kernels.compare[batch.l2][levels[0].grad.defined()]),
        rows_(levels.size()),
        masked_(common.padded),
        target_(common.padded) {
    for (const Level<T>& level : levels) windows_.emplace_back(level, common);
  }

  Sums run(int64_t n) {
    const bool mirrored = batch_.flip.const_data_ptr<bool>()[n];
    const bool* mask = batch_.mask.const_data_ptr<bool>() + n * batch_.rows() * batch_.cols();
    const uint8_t* pixels = batch_.images.const_data_ptr<uint8_t>() + n * batch_.height() * common_.numbers;
    Sums sums;
    for (Window<T>& window : windows_) window.begin(n, mirrored);
    for (int64_t y = 0; y < batch_.height(); ++y) {
      if (y % batch_.patch() == 0) choose(mask + y / batch_.patch() * batch_.cols(), mirrored);
      if (!blocks_.empty()) add_row(y, pixels + y * common_.numbers, sums);
    }
    for (Window<T>& window : windows_) window.end();
    return sums;
  }

 private:
  // Which numbers, and which blocks of them, are masked in a row of patches.
  void choose(const bool* mask, bool mirrored) {
    const int64_t span = 3 * batch_.patch(), cols = batch_.cols();
    for (int64_t col = 0; col < cols; ++col) {
      std::fill_n(masked_.data() + col * span, span, static_cast<T>(mask[mirrored ? cols - 1 - col : col]));
    }
    blocks_.clear();
    for (int64_t begin = 0; begin < common_.numbers; begin += common_.kernels.block) {
      const int64_t end = std::min(begin + common_.kernels.block, common_.numbers);
      int64_t i = begin;
      while (i < end && masked_.data()[i] == 0) i = (i / span + 1) * span;  // from patch to patch
      if (i < end) blocks_.push_back(begin);
    }
  }

  void add_row(int64_t y, const uint8_t* pixels, Sums& sums) {
    for (size_t l = 0; l < rows_.size(); ++l) rows_[l] = windows_[l].at(y);
    common_.normalise(pixels, common_.shift.data(), common_.scale.data(), target_.data(), common_.numbers);
    const auto n_levels = static_cast<int64_t>(rows_.size()), n_blocks = static_cast<int64_t>(blocks_.size());
    compare_({rows_.data(), n_levels, blocks_.data(), n_blocks, masked_.data(), target_.data(), common_.bias.data()},
             &sums.loss, sums.colours);
  }

  const Batch& batch_;
  const Common<T>& common_;
  void (*compare_)(const Line<T>&, double*, double*);
  std::vector<Window<T>> windows_;
  std::vector<Rows<T>> rows_;
  std::vector<int64_t> blocks_;
  Aligned<T> masked_, target_;
};

template <typename T>
void run(const Kernels<T>& kernels, Normalise<T> normalise, const Batch& batch, Result& result) {
  const bool* mask = batch.mask.const_data_ptr<bool>();
  const double terms = std::count(mask, mask + batch.mask.numel(), true) * 3.0 * batch.patch() * batch.patch();
  const Common<T> common(kernels, normalise, batch, terms);
  std::vector<Level<T>> levels;
  for (size_t l = 0; l < batch.levels.size(); ++l) {
    levels.emplace_back(batch.levels[l], result.grad_levels.empty() ? at::Tensor() : result.grad_levels[l], batch);
  }
  std::vector<Sums> sums(batch.count());
  at::parallel_for(0, batch.count(), 1, [&](int64_t begin, int64_t end) {
    Worker<T> worker(batch, levels, common);
    for (int64_t n = begin; n < end; ++n) sums[n] = worker.run(n);
  });
  Sums total;  // in the images' order, whatever the number of threads
  for (const Sums& of_image : sums) {
    total.loss += of_image.loss;
    for (int c = 0; c < 3; ++c) total.colours[c] += of_image.colours[c];
  }
  *result.loss.mutable_data_ptr<T>() = total.loss / terms;
  T* grad_bias = result.grad_bias.mutable_data_ptr<T>();
  for (int64_t c = 0; c < result.grad_bias.numel(); ++c) grad_bias[c] = common.gradient * total.colours[c];
}

using Outputs = std::tuple<at::Tensor, std::vector<at::Tensor>, at::Tensor>;

Outputs masked_loss(at::TensorList levels, const at::Tensor& bias, const at::Tensor& images, const at::Tensor& flip,
                    const at::Tensor& mask, at::ArrayRef<double> mean, at::ArrayRef<double> std, std::string_view norm,
                    bool need_grad) {
  TORCH_CHECK(images.dim() == 4 && images.size(3) == 3 && mean.size() == 3 && std.size() == 3 && bias.dim() == 1 &&
                  bias.numel() == 3 && images.size(1) > 0,
              "masked_loss: three channels are needed, images NHWC");
  TORCH_CHECK(mask.dim() == 3 && mask.size(0) == images.size(0) && flip.numel() == images.size(0),
              "masked_loss: one mask and flip an image");
  TORCH_CHECK(mask.size(1) > 0 && images.size(1) % mask.size(1) == 0 &&
                  images.size(1) / mask.size(1) * mask.size(2) == images.size(2),
              "masked_loss: the mask's patches must be squares that cover the image");
  TORCH_CHECK(norm == "l1" || norm == "l2", "masked_loss: norm must be l1 or l2");
  TORCH_CHECK(!levels.empty(), "masked_loss: at least one level is needed");
  const Batch batch{levels, bias, images.contiguous(), flip.contiguous(), mask.contiguous(), mean, std, norm == "l2"};
  Result result{at::empty({}, bias.options()), {}, at::empty({need_grad ? 3 : 0}, bias.options())};
  for (const at::Tensor& level : levels) {
    TORCH_CHECK(level.dim() == 4 && level.size(0) == batch.count() && level.size(1) == 3 && level.size(2) > 0 &&
                    level.size(3) > 0,
                "masked_loss: levels must be (N, 3, h, w)");
    TORCH_CHECK(level.scalar_type() == bias.scalar_type(), "masked_loss: levels and bias must be of one dtype");
    if (need_grad) result.grad_levels.push_back(at::zeros_like(level));
  }
  static constexpr const Table* tables[] = FASTDARTS_TABLES(masked_loss_table);
  static constexpr const NormaliseKernels* normalise_tables[] = FASTDARTS_TABLES(normalise_kernels);
  const Table& table = kernels(tables);
  const NormaliseKernels& normalise = kernels(normalise_tables);
  if (bias.scalar_type() == at::kDouble) {
    run(table.f64, normalise.f64, batch, result);
  } else {
    run(table.f32, normalise.f32, batch, result);
  }
  return {result.loss, result.grad_levels, result.grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(fastdarts, CPU, m) { m.impl("masked_loss", &masked_loss); }

}  // namespace fastdarts::masked_loss
