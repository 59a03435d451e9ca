// A second rule for a logit in the CPU's walks over tile and strip: sigmoid's, with sums of
// log(1 + exp(S)) and weights P = 1 / (1 + exp(-S)). It brings no walk of its own.
// test_logit_rules.py compiles and calls it.
#include <vector>

#include "contrastive/cpu/blas_strip.cpp"
#include "contrastive/cpu/exp2.h"
#include "contrastive/cpu/strip.cpp"
#include "contrastive/cpu/tile_walk.h"

namespace clipfast {
namespace {

using CPU_CAPABILITY::Vec;

struct SigmoidSumRule {
  Vec operator()(const Vec& logit) const { return (Vec(1.0f) + CPU_CAPABILITY::exp2(logit)).log(); }
};

struct SigmoidWeightRule {
  const float* row_factor;

  auto column(int64_t) const {
    return
        [row_factor = row_factor](const auto& logit, const auto& column_factor, const auto& load) {
          const Vec one(1.0f);
          return load(row_factor) * column_factor / (one + CPU_CAPABILITY::exp2(logit.neg()));
        };
  }
};

}  // namespace

// oneDNN's driver would bring the packing kernels of every capability.
StripDriver* brgemm_driver(at::ScalarType) { return nullptr; }

}  // namespace clipfast

// sizes: B, G, D, first_column. x [B, D], y [G, D], row_factor [B], column_factor [G], scale [1].
// Overwrites row_sum [B] and column_sum [G], row_grad [B, D] = Q y and column_grad [G, D] = Q^T x.
extern "C" void sigmoid_walks(const int64_t* sizes, float* x, float* y, float* row_factor,
                              float* column_factor, float* scale, double* row_sum,
                              double* column_sum, float* row_grad, float* column_grad) {
  using namespace clipfast;
  const int64_t rows = sizes[0], columns = sizes[1], width = sizes[2];
  const auto tensor = [](float* data, at::IntArrayRef shape) {
    return at::from_blob(data, shape, at::kFloat);
  };
  const OwnedStrip owned(tensor(x, {rows, width}), tensor(y, {columns, width}),
                         tensor(row_factor, {rows}), tensor(column_factor, {columns}),
                         tensor(scale, {1}), sizes[3]);
  StripDriver* driver = driver_for(at::kFloat);
  std::vector<float> kept(rows * columns);
  Sums sums{std::vector<double>(rows), std::vector<double>(columns)};
  driver->sums(
      owned.strip,
      [](const Tile& tile, float* tile_row_sum, float* tile_column_sum) {
        CPU_CAPABILITY::add_up_tile(tile, SigmoidSumRule{}, tile_row_sum, tile_column_sum);
      },
      kept.data(), sums);
  std::copy(sums.row.begin(), sums.row.end(), row_sum);
  std::copy(sums.column.begin(), sums.column.end(), column_sum);
  std::fill_n(column_grad, columns * width, 0.0f);
  driver->gradients(
      owned.strip,
      [&](const Tile& tile, float* weights) {
        CPU_CAPABILITY::weigh_tile(tile, SigmoidWeightRule{row_factor + tile.first_row}, weights);
      },
      kept.data(), tensor(row_grad, {rows, width}), tensor(column_grad, {columns, width}));
}
