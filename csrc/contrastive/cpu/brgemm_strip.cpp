// The strip through oneDNN's block matrix product (brgemm), as torch exposes it.
//
// A block of rows of x is transposed once; threads then share the columns. A thread's tile of
// columns goes through product, rule and both gradient products while it is in the core's own
// cache, so no logit is written to memory. The column gradient belongs to the thread that holds the
// columns; the row gradients of the threads are added in one fixed order.
#include <limits>

#include "brgemm_gradients.h"

namespace clipfast {

#ifdef CLIPFAST_HAS_BRGEMM

namespace {

const auto kNothing = [](int64_t, int64_t) {};

template <typename T>
class BrgemmDriver : public StripDriver {
 public:
  void sums(const Strip& strip, const TileSums& add_up, float* kept, Sums& sums) override {
    Walk<T> walk(strip);
    PerThread<double> parts(walk.threads(), walk.block());
    const auto each = [&](const Work& w) {
      float row_sum[kBlockRows], column_sum[kTileColumns];
      add_up(walk.tile_of(w), row_sum, column_sum);
      double* part = parts[w.thread];
      for (int64_t i = 0; i < w.rows; ++i) part[i] = (w.first ? 0.0 : part[i]) + row_sum[i];
      for (int64_t c = 0; c < w.columns; ++c) sums.column[w.column + c] += column_sum[c];
    };
    const auto finish = [&](int64_t row, int64_t rows) {
      for (int64_t thread = 0; thread < walk.threads(); ++thread) {
        for (int64_t i = 0; i < rows; ++i) sums.row[row + i] += parts[thread][i];
      }
    };
    walk.run(kept, false, kNothing, each, finish);
  }

  void maxima(const Strip& strip, const TileMaxima& merge, const float* kept,
              Maxima& maxima) override {
    Walk<T> walk(strip);
    PerThread<float> max_parts(walk.threads(), walk.block());
    PerThread<double> sum_parts(walk.threads(), walk.block());
    PerThread<float> logits(walk.threads(), walk.block() * walk.tile());
    const auto each = [&](const Work& w) {
      if (w.first) {
        std::fill_n(max_parts[w.thread], w.rows, kNoMaximum);
        std::fill_n(sum_parts[w.thread], w.rows, 0.0);
      }
      merge(walk.tile_of(w), logits[w.thread],
            {max_parts[w.thread], sum_parts[w.thread], maxima.column_max.data() + w.column,
             maxima.column.data() + w.column});
    };
    const auto finish = [&](int64_t row, int64_t rows) {
      for (int64_t thread = 0; thread < walk.threads(); ++thread) {
        for (int64_t i = 0; i < rows; ++i) {
          maxima.add_to_row(row + i, max_parts[thread][i], sum_parts[thread][i]);
        }
      }
    };
    walk.run(const_cast<float*>(kept), kept != nullptr, kNothing, each, finish);
  }

  void gradients(const Strip& strip, const TileWeights& weigh, const float* kept,
                 at::Tensor row_grad, at::Tensor column_grad) override {
    Walk<T> walk(strip);
    GradientProducts<T> products(strip, walk, row_grad, column_grad);
    const auto each = [&](const Work& w) {
      weigh(walk.tile_of(w), w.buffer);
      products.add_columns(w);
      products.add_rows(w);
    };
    walk.run(
        const_cast<float*>(kept), kept != nullptr,
        [&](int64_t row, int64_t rows) { products.start_block(row, rows); }, each,
        [&](int64_t row, int64_t rows) { products.finish_block(row, rows); });
  }
};

}  // namespace

StripDriver* brgemm_driver(at::ScalarType type) {
  static BrgemmDriver<float> single;
  static BrgemmDriver<at::BFloat16> half;
  if (!has_brgemm(type)) return nullptr;
  if (type == at::kFloat) return &single;
  return &half;
}

#else

StripDriver* brgemm_driver(at::ScalarType) { return nullptr; }

#endif

}  // namespace clipfast
