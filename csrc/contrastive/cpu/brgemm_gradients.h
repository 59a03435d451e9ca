// The two gradient products of a tile through oneDNN's block matrix product.
#pragma once

#include "brgemm_walk.h"

#ifdef CLIPFAST_HAS_BRGEMM

namespace clipfast {
namespace {

// The two gradient products of a tile.
template <typename T>
class GradientProducts {
 public:
  GradientProducts(const Strip& strip, const Walk<T>& walk, at::Tensor row_grad,
                   at::Tensor column_grad)
      : walk_(walk),
        width_(strip.width),
        row_grad_(row_grad.defined() ? row_grad.mutable_data_ptr<float>() : nullptr),
        column_grad_(column_grad.defined() ? column_grad.mutable_data_ptr<float>() : nullptr),
        // The first thread adds into row_grad itself.
        parts_(row_grad_ ? walk.threads() - 1 : 0, walk.block() * width_),
        transposed_(walk.threads(), walk.block() * even(walk.tile())),
        rounded_(kPairs ? walk.threads() : 0, walk.tile() * even(walk.block())),
        x_pairs_(kPairs ? 1 : 0, even(walk.block()) * width_),
        y_pairs_(kPairs ? walk.threads() : 0, even(walk.tile()) * width_) {}

  void start_block(int64_t row, int64_t rows) {
    if constexpr (kPairs) {
      if (!column_grad_) return;
      CLIPFAST_CPU_KERNEL(interleave_rows)
      ({walk_.x(row), width_, rows, width_, x_pairs_[0], width_});
    }
  }

  // column_grad[tile] += Q^T x
  void add_columns(const Work& w) {
    if (!column_grad_) return;
    float* target = column_grad_ + w.column * width_;
    if constexpr (kPairs) {
      const int64_t stride = even(w.rows);
      T* rounded = rounded_[w.thread];
      CLIPFAST_CPU_KERNEL(round_to_bf16)
      ({w.buffer, w.rows, w.columns, w.rows, rounded, stride});
      clear_last(rounded, w.columns, w.rows);
      multiply<T>(w.columns, width_, stride, rounded, stride, x_pairs_[0], width_, target, width_,
                  true);
    } else {
      multiply<T>(w.columns, width_, w.rows, w.buffer, w.rows, walk_.x(w.row), width_, target,
                  width_, true);
    }
  }

  // row_grad[block] += Q y
  void add_rows(const Work& w) {
    if (!row_grad_) return;
    float* target = w.thread == 0 ? row_grad_ + w.row * width_ : parts_[w.thread - 1];
    T* transposed = transposed_[w.thread];
    if constexpr (kPairs) {
      const int64_t stride = even(w.columns);
      CLIPFAST_CPU_KERNEL(transpose_to_bf16)
      ({w.buffer, w.rows, w.columns, w.rows, transposed, stride});
      clear_last(transposed, w.rows, w.columns);
      CLIPFAST_CPU_KERNEL(interleave_rows)
      ({walk_.y(w.column), width_, w.columns, width_, y_pairs_[w.thread], width_});
      multiply<T>(w.rows, width_, stride, transposed, stride, y_pairs_[w.thread], width_, target,
                  width_, !w.first);
    } else {
      CLIPFAST_CPU_KERNEL(transpose)
      ({w.buffer, w.rows, w.columns, w.rows, transposed, w.columns});
      multiply<T>(w.rows, width_, w.columns, transposed, w.columns, walk_.y(w.column), width_,
                  target, width_, !w.first);
    }
  }

  void finish_block(int64_t row, int64_t rows) {
    if (!row_grad_ || walk_.threads() == 1) return;
    float* target = row_grad_ + row * width_;
    at::parallel_for(0, rows * width_, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t thread = 1; thread < walk_.threads(); ++thread) {
        const float* part = parts_[thread - 1];
        for (int64_t i = begin; i < end; ++i) target[i] += part[i];
      }
    });
  }

 private:
  static constexpr bool kPairs = !std::is_same_v<T, float>;

  // The partner of an odd last element.
  static void clear_last(T* matrix, int64_t rows, int64_t columns) {
    if (columns % 2 == 0) return;
    for (int64_t i = 0; i < rows; ++i) matrix[i * even(columns) + columns] = T(0);
  }

  const Walk<T>& walk_;
  int64_t width_;
  float* row_grad_;
  float* column_grad_;
  PerThread<float> parts_;
  PerThread<T> transposed_, rounded_, x_pairs_, y_pairs_;
};

}  // namespace
}  // namespace clipfast

#endif
