// The strip's checks, and the choice of who walks over it.
#include "strip.h"

#include <c10/util/Exception.h>

#include "contrastive/constants.h"
#include "contrastive/contrastive.h"

namespace clipfast {

StripDriver* driver_for(at::ScalarType type) {
  StripDriver* driver = brgemm_driver(type);
  if (driver == nullptr && type == at::kFloat) driver = blas_driver();
  TORCH_CHECK(driver != nullptr, "contrastive loss on the CPU: expected float32",
              brgemm_driver(at::kBFloat16) ? " or bfloat16" : "", " features, got ", type);
  return driver;
}

bool has_bfloat16_product() { return brgemm_driver(at::kBFloat16) != nullptr; }

void check_vector(const at::Tensor& t, int64_t size, const char* name) {
  TORCH_CHECK(
      t.dim() == 1 && t.numel() == size && t.scalar_type() == at::kFloat && t.is_contiguous(),
      "contrastive loss: expected ", name, " of ", size, " contiguous float32, got ", t.sizes(),
      " ", t.scalar_type());
}

OwnedStrip::OwnedStrip(const at::Tensor& x, const at::Tensor& y, const at::Tensor& row_factor_in,
                       const at::Tensor& column_factor_in, const at::Tensor& scale,
                       int64_t first_column)
    : row_factor(row_factor_in), column_factor(column_factor_in), row_scale(x.size(0)) {
  TORCH_CHECK(
      x.dim() == 2 && y.dim() == 2 && x.size(1) == y.size(1) && x.scalar_type() == y.scalar_type(),
      "contrastive loss: expected x [B, D] and y [G, D] of one type, got ", x.sizes(), " ",
      x.scalar_type(), " and ", y.sizes(), " ", y.scalar_type());
  TORCH_CHECK(first_column >= 0 && first_column + x.size(0) <= y.size(0),
              "contrastive loss: the pairs of ", x.size(0), " rows start at column ", first_column,
              " of ", y.size(0));
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.size(1) % 2 == 0,
              "contrastive loss: bfloat16 features need an even width, got ", x.size(1));
  check_vector(row_factor, x.size(0), "row_factor");
  check_vector(column_factor, y.size(0), "column_factor");
  check_vector(scale, 1, "scale");
  const float s = *scale.const_data_ptr<float>();
  const float* f = row_factor.const_data_ptr<float>();
  for (size_t i = 0; i < row_scale.size(); ++i) {
    row_scale[i] = static_cast<float>(kLog2e * s * f[i]);
  }
  strip = {x.contiguous(),
           y.contiguous(),
           row_scale.data(),
           f,
           column_factor.const_data_ptr<float>(),
           first_column,
           x.size(0),
           y.size(0),
           x.size(1)};
}

void Maxima::add_to_row(int64_t i, float part_max, double part_sum) {
  if (part_max == kNoMaximum) return;
  const float largest = row_max[i] > part_max || row_max[i] != row_max[i] ? row_max[i] : part_max;
  const auto rescaled = [&](float from, double sum) {
    return from == kNoMaximum ? 0.0 : sum * std::exp2(static_cast<double>(from) - largest);
  };
  row[i] = rescaled(row_max[i], row[i]) + rescaled(part_max, part_sum);
  row_max[i] = largest;
}

}  // namespace clipfast
