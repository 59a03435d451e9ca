// contrastive_statistics and contrastive_gradients on the CPU: softmax's vectors, registration.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "contrastive/constants.h"
#include "softmax.h"
#include "strip.h"

namespace clipfast {
namespace {

using at::Tensor;

bool in_range(const std::vector<double>& sums) {
  // The limit of float32, in which they are handed on; a NaN fails the comparison.
  return std::all_of(sums.begin(), sums.end(), [](double v) {
    return v >= kSmallestSum && v <= std::numeric_limits<float>::max();
  });
}

Tensor to_tensor(const std::vector<double>& values) {
  Tensor t = at::empty({static_cast<int64_t>(values.size())}, at::kFloat);
  std::copy(values.begin(), values.end(), t.mutable_data_ptr<float>());
  return t;
}

// From units of ln 2; rows and columns without any term have maximum 0.
Tensor to_natural(const std::vector<float>& maxima) {
  Tensor t = at::empty({static_cast<int64_t>(maxima.size())}, at::kFloat);
  std::transform(maxima.begin(), maxima.end(), t.mutable_data_ptr<float>(),
                 [](float v) { return v == kNoMaximum ? 0.0f : static_cast<float>(v / kLog2e); });
  return t;
}

Maxima true_maxima(const Strip& strip, StripDriver* driver, const float* kept) {
  auto* kernel = CLIPFAST_CPU_KERNEL(softmax_maxima);
  const auto merge = [&](const Tile& tile, float* logits, const TilePairs& p) {
    kernel({tile, logits, p.row_max, p.row_sum, p.column_max, p.column_sum});
  };
  Maxima maxima;
  maxima.row.assign(strip.rows, 0.0);
  maxima.column.assign(strip.columns, 0.0);
  maxima.row_max.assign(strip.rows, kNoMaximum);
  maxima.column_max.assign(strip.columns, kNoMaximum);
  driver->maxima(strip, merge, kept, maxima);
  return maxima;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> statistics(
    const Tensor& x, const Tensor& y, const Tensor& row_factor, const Tensor& column_factor,
    const Tensor& scale, const Tensor& bound, int64_t first_column, bool keep, int64_t) {
  const OwnedStrip owned(x, y, row_factor, column_factor, scale, first_column);
  const Strip& strip = owned.strip;
  check_vector(bound, 1, "bound");
  StripDriver* driver = driver_for(x.scalar_type());
  Tensor kept =
      keep ? at::empty({strip.rows, strip.columns}, at::kFloat) : at::empty({0}, at::kFloat);
  float* kept_data = keep ? kept.mutable_data_ptr<float>() : nullptr;

  const float shift =
      std::max(0.0f, *bound.const_data_ptr<float>() - static_cast<float>(kShiftMargin) +
                         std::log(static_cast<float>(strip.columns)));
  const SoftmaxShift args{static_cast<float>(shift * kLog2e)};
  auto* kernel = CLIPFAST_CPU_KERNEL(softmax_sums);
  const auto add_up = [&](const Tile& tile, float* row_sum, float* column_sum) {
    kernel(tile, args, row_sum, column_sum);
  };
  Sums sums{std::vector<double>(strip.rows), std::vector<double>(strip.columns)};
  driver->sums(strip, add_up, kept_data, sums);
  if (in_range(sums.row) && in_range(sums.column)) {
    return {at::full({strip.rows}, shift, at::kFloat),
            to_tensor(sums.row),
            at::full({strip.columns}, shift, at::kFloat),
            to_tensor(sums.column),
            at::full({1}, shift, at::kFloat),
            kept};
  }
  const Maxima maxima = true_maxima(strip, driver, kept_data);
  return {to_natural(maxima.row_max),
          to_tensor(maxima.row),
          to_natural(maxima.column_max),
          to_tensor(maxima.column),
          at::full({1}, std::numeric_limits<float>::quiet_NaN(), at::kFloat),
          kept};
}

// exp(shift - lse) times the factor, or lse in units of ln 2.
std::vector<float> weights_of(const Tensor& lse, float shift, bool exact, const float* factor) {
  const float* values = lse.const_data_ptr<float>();
  std::vector<float> weights(lse.numel());
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = exact ? static_cast<float>(kLog2e * values[i])
                       : std::exp(shift - values[i]) * (factor ? factor[i] : 1.0f);
  }
  return weights;
}

std::tuple<Tensor, Tensor> gradients(const Tensor& x, const Tensor& y, const Tensor& row_factor,
                                     const Tensor& column_factor, const Tensor& scale,
                                     const Tensor&, const Tensor& shift_in, const Tensor& row_lse,
                                     const Tensor& column_lse, const Tensor& kept,
                                     int64_t first_column, bool want_rows, bool want_columns,
                                     int64_t) {
  const OwnedStrip owned(x, y, row_factor, column_factor, scale, first_column);
  const Strip& strip = owned.strip;
  check_vector(shift_in, 1, "shift");
  check_vector(row_lse, strip.rows, "row_lse");
  check_vector(column_lse, strip.columns, "column_lse");
  const bool is_kept = kept.numel() > 0;
  if (is_kept) {
    TORCH_CHECK(kept.dim() == 2 && kept.size(0) == strip.rows && kept.size(1) == strip.columns &&
                    kept.scalar_type() == at::kFloat && kept.is_contiguous(),
                "contrastive loss: expected kept of [", strip.rows, ", ", strip.columns,
                "] contiguous float32, got ", kept.sizes(), " ", kept.scalar_type());
  }

  const float shift = *shift_in.const_data_ptr<float>();
  const bool exact = std::isnan(shift);
  const auto row_weight = weights_of(row_lse, shift, exact, strip.row_factor);
  const auto column_weight = weights_of(column_lse, shift, exact, nullptr);
  auto* kernel = CLIPFAST_CPU_KERNEL(softmax_weights);
  const auto weigh = [&](const Tile& tile, float* weights) {
    kernel(tile,
           {exact, static_cast<float>(shift * kLog2e), strip.row_factor + tile.first_row,
            row_weight.data() + tile.first_row, column_weight.data() + tile.first_column},
           weights);
  };
  Tensor row_grad, column_grad;
  if (want_rows) row_grad = at::empty(x.sizes(), at::kFloat);
  if (want_columns) column_grad = at::zeros(y.sizes(), at::kFloat);
  if (want_rows || want_columns) {
    driver_for(x.scalar_type())
        ->gradients(strip, weigh, is_kept ? kept.const_data_ptr<float>() : nullptr, row_grad,
                    column_grad);
  }
  const Tensor none = at::empty({0}, at::kFloat);
  return {want_rows ? row_grad : none, want_columns ? column_grad : none};
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CPU, m) {
  m.impl("contrastive_statistics", &statistics);
  m.impl("contrastive_gradients", &gradients);
}

}  // namespace clipfast
