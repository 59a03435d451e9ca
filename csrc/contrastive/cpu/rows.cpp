// The row operators of the contrastive loss on the CPU: checks, allocation, registration.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "common/cpu_threads.h"
#include "common/torch_types.h"
#include "contrastive/rows.h"

namespace clipfast {
namespace {

using at::Tensor;

void check_features(const Tensor& x) {
  TORCH_CHECK(x.dim() == 2, "contrastive loss: expected features [B, D], got ", x.sizes());
  TORCH_CHECK(to_dtype(x.scalar_type()) != DType::kFloat64,
              "contrastive loss on the CPU: expected float32, bfloat16 or float16, got float64");
}

void check_same(const Tensor& x, const Tensor& y) {
  check_features(x);
  TORCH_CHECK(y.sizes() == x.sizes() && y.scalar_type() == x.scalar_type(),
              "contrastive loss: expected two tensors ", x.sizes(), " ", x.scalar_type(), ", got ",
              y.sizes(), " ", y.scalar_type());
}

const void* floats(const Tensor& t, int64_t size, const char* name) {
  TORCH_CHECK(
      t.dim() == 1 && t.numel() == size && t.scalar_type() == at::kFloat && t.is_contiguous(),
      "contrastive loss: expected ", name, " of ", size, " contiguous float32, got ", t.sizes(),
      " ", t.scalar_type());
  return t.const_data_ptr();
}

Tensor vector_of(int64_t size) { return at::empty({size}, at::kFloat); }

template <typename Kernel, typename Args>
void run_rows(Kernel* kernel, const Args& args) {
  run_range(kernel, args, args.rows, row_grain(args.dim));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> prepare(const Tensor& x_in, bool normalize,
                                                   std::optional<at::ScalarType> work_dtype) {
  check_features(x_in);
  const Tensor x = with_adjacent_elements(x_in);
  const int64_t rows = x.size(0);
  const auto work_type = work_dtype.value_or(x.scalar_type());
  TORCH_CHECK(work_type != at::kDouble, "contrastive_prepare: no float64 work on the CPU");
  Tensor work =
      work_dtype ? at::empty(x.sizes(), x.options().dtype(work_type)) : at::empty({0}, x.options());
  Tensor inverse_norm = vector_of(rows), factor = vector_of(rows), norm = vector_of(rows);
  run_rows(
      CLIPFAST_CPU_KERNEL(contrastive_prepare_rows),
      PrepareArgs{to_rows(x),
                  work_dtype ? to_mutable_rows(work) : MutableRows{nullptr, to_dtype(work_type), 0},
                  inverse_norm.mutable_data_ptr(), factor.mutable_data_ptr(),
                  norm.mutable_data_ptr(), rows, x.size(1), normalize});
  return {work, inverse_norm, factor, norm};
}

Tensor diagonal(const Tensor& x_in, const Tensor& y_in, const Tensor& x_inverse_norm,
                const Tensor& y_inverse_norm) {
  check_same(x_in, y_in);
  const Tensor x = with_adjacent_elements(x_in), y = with_adjacent_elements(y_in);
  const int64_t rows = x.size(0);
  Tensor out = vector_of(rows);
  run_rows(CLIPFAST_CPU_KERNEL(contrastive_diagonal_rows),
           DiagonalArgs{to_rows(x), to_rows(y), floats(x_inverse_norm, rows, "x_inverse_norm"),
                        floats(y_inverse_norm, rows, "y_inverse_norm"), out.mutable_data_ptr(),
                        rows, x.size(1)});
  return out;
}

std::tuple<Tensor, Tensor> finish(const Tensor& grad_in, const Tensor& x_in, const Tensor& other_in,
                                  const Tensor& inverse_norm, const Tensor& other_inverse_norm,
                                  const Tensor& factor, const Tensor& diagonal,
                                  const Tensor& coefficient, bool normalize) {
  check_same(x_in, other_in);
  TORCH_CHECK(grad_in.sizes() == x_in.sizes() && grad_in.scalar_type() == at::kFloat,
              "contrastive_finish: expected a float32 gradient ", x_in.sizes(), ", got ",
              grad_in.sizes(), " ", grad_in.scalar_type());
  const Tensor grad = with_adjacent_elements(grad_in), x = with_adjacent_elements(x_in),
               other = with_adjacent_elements(other_in);
  const int64_t rows = x.size(0);
  Tensor grad_x = at::empty(x.sizes(), x.options());
  Tensor dot = vector_of(rows);
  run_rows(CLIPFAST_CPU_KERNEL(contrastive_finish_rows),
           FinishArgs{to_rows(grad), to_rows(x), to_rows(other),
                      floats(inverse_norm, rows, "inverse_norm"),
                      floats(other_inverse_norm, rows, "other_inverse_norm"),
                      floats(factor, rows, "factor"), floats(diagonal, rows, "diagonal"),
                      floats(coefficient, 1, "coefficient"), to_mutable_rows(grad_x),
                      dot.mutable_data_ptr(), rows, x.size(1), normalize});
  return {grad_x, dot};
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CPU, m) {
  m.impl("contrastive_prepare", &prepare);
  m.impl("contrastive_diagonal", &diagonal);
  m.impl("contrastive_finish", &finish);
}

}  // namespace clipfast
