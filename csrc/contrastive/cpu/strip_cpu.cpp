// contrastive_statistics and contrastive_gradients on the CPU: checks, vectors, registration.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "contrastive/constants.h"
#include "strip.h"

namespace clipfast {
namespace {

using at::Tensor;

StripDriver* driver_for(at::ScalarType type) {
  StripDriver* driver = brgemm_driver(type);
  if (driver == nullptr && type == at::kFloat) driver = blas_driver();
  TORCH_CHECK(driver != nullptr, "contrastive loss on the CPU: expected float32",
              brgemm_driver(at::kBFloat16) ? " or bfloat16" : "", " features, got ", type);
  return driver;
}

void check_vector(const Tensor& t, int64_t size, const char* name) {
  TORCH_CHECK(t.numel() == size && t.scalar_type() == at::kFloat && t.is_contiguous(),
              "contrastive loss: expected ", name, " of ", size, " contiguous float32, got ",
              t.sizes(), " ", t.scalar_type());
}

// The strip and what it points to.
struct OwnedStrip {
  Tensor row_factor, column_factor;
  std::vector<float> lane_scale;
  Strip strip;

  OwnedStrip(const Tensor& x, const Tensor& y, const Tensor& row_factor_in,
             const Tensor& column_factor_in, const Tensor& scale, int64_t first_column)
      : row_factor(row_factor_in), column_factor(column_factor_in), lane_scale(x.size(0)) {
    TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && x.size(1) == y.size(1) &&
                    x.scalar_type() == y.scalar_type(),
                "contrastive loss: expected x [B, D] and y [G, D] of one type, got ", x.sizes(),
                " ", x.scalar_type(), " and ", y.sizes(), " ", y.scalar_type());
    TORCH_CHECK(first_column >= 0 && first_column + x.size(0) <= y.size(0),
                "contrastive loss: the pairs of ", x.size(0), " rows start at column ",
                first_column, " of ", y.size(0));
    TORCH_CHECK(x.scalar_type() == at::kFloat || x.size(1) % 2 == 0,
                "contrastive loss: bfloat16 features need an even width, got ", x.size(1));
    check_vector(row_factor, x.size(0), "row_factor");
    check_vector(column_factor, y.size(0), "column_factor");
    check_vector(scale, 1, "scale");
    const float s = *scale.const_data_ptr<float>();
    const float* f = row_factor.const_data_ptr<float>();
    for (size_t i = 0; i < lane_scale.size(); ++i) {
      lane_scale[i] = static_cast<float>(kLog2e * s * f[i]);
    }
    strip = {x.contiguous(),
             y.contiguous(),
             lane_scale.data(),
             f,
             column_factor.const_data_ptr<float>(),
             first_column,
             x.size(0),
             y.size(0),
             x.size(1)};
  }
};

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
  Sums sums;
  sums.row.assign(strip.rows, 0.0);
  sums.column.assign(strip.columns, 0.0);
  driver->statistics(strip, static_cast<float>(shift * kLog2e), kept_data, sums);
  if (in_range(sums.row) && in_range(sums.column)) {
    return {at::full({strip.rows}, shift, at::kFloat),
            to_tensor(sums.row),
            at::full({strip.columns}, shift, at::kFloat),
            to_tensor(sums.column),
            at::full({1}, shift, at::kFloat),
            kept};
  }
  sums.row.assign(strip.rows, 0.0);
  sums.column.assign(strip.columns, 0.0);
  sums.row_max.assign(strip.rows, kNoMaximum);
  sums.column_max.assign(strip.columns, kNoMaximum);
  driver->maxima(strip, kept_data, sums);
  return {to_natural(sums.row_max),
          to_tensor(sums.row),
          to_natural(sums.column_max),
          to_tensor(sums.column),
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
  if (is_kept) check_vector(kept, strip.rows * strip.columns, "kept");

  const float shift = *shift_in.const_data_ptr<float>();
  const bool exact = std::isnan(shift);
  const auto lane_weight = weights_of(row_lse, shift, exact, strip.row_factor);
  const auto outer_weight = weights_of(column_lse, shift, exact, nullptr);
  const WeightVectors weights{lane_weight.data(), outer_weight.data(), exact,
                              static_cast<float>(shift * kLog2e)};
  Tensor row_grad, column_grad;
  if (want_rows) row_grad = at::empty(x.sizes(), at::kFloat);
  if (want_columns) column_grad = at::zeros(y.sizes(), at::kFloat);
  if (want_rows || want_columns) {
    driver_for(x.scalar_type())
        ->gradients(strip, weights, is_kept ? kept.const_data_ptr<float>() : nullptr, row_grad,
                    column_grad);
  }
  const Tensor none = at::empty({0}, at::kFloat);
  return {want_rows ? row_grad : none, want_columns ? column_grad : none};
}

}  // namespace

bool has_bfloat16_product() { return brgemm_driver(at::kBFloat16) != nullptr; }

TORCH_LIBRARY_IMPL(clipfast, CPU, m) {
  m.impl("contrastive_statistics", &statistics);
  m.impl("contrastive_gradients", &gradients);
}

}  // namespace clipfast
