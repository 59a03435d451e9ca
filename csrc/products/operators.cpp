// Checks, allocation and registration of linear, its backward, and bmm on the CPU.
#include <ATen/core/Tensor.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "products/library.h"
#include "products/products.h"

namespace clipfast {
namespace {

using at::Tensor;

// Whether a matrix [.., M, K] can be read as it lies: rows or columns contiguous, none overlapping.
bool is_readable(const Tensor& matrix) {
  const int64_t rows = matrix.size(-2), columns = matrix.size(-1);
  const int64_t row_stride = matrix.stride(-2), column_stride = matrix.stride(-1);
  return (column_stride == 1 && row_stride >= columns) ||
         (row_stride == 1 && column_stride >= rows);
}

Tensor readable(const Tensor& matrix) { return is_readable(matrix) ? matrix : matrix.contiguous(); }

// The last two dimensions of the first matrix of a batch.
Operand operand(const Tensor& m) {
  const int64_t rows = m.size(-2), columns = m.size(-1);
  // The stride of a single row may be anything.
  const int64_t row_stride = rows == 1 && m.stride(-1) == 1 ? columns : m.stride(-2);
  return {m.const_data_ptr<float>(), rows, columns, row_stride, m.stride(-1)};
}

Tensor as_rows(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  return x.reshape({rows, x.size(-1)});
}

bool takes_onednn(ProductKind kind, int64_t rows, const Tensor& a) {
  return a.scalar_type() == at::kFloat && library_of(kind, rows) == Library::kOneDnn;
}

// a b, a's row sums too where wanted.
Tensor product(const Tensor& a_in, const Tensor& b_in, const Tensor* bias = nullptr,
               Tensor* row_sums = nullptr) {
  const Tensor a = readable(a_in), b = readable(b_in);
  Tensor c = at::empty({a.size(0), b.size(1)}, a.options());
  Product p{operand(a), operand(b), c.mutable_data_ptr<float>()};
  if (bias) p.bias = bias->const_data_ptr<float>();
  if (row_sums && p.a.is_transposed()) {
    *row_sums = at::empty({a.size(0)}, a.options());
    p.row_sums = row_sums->mutable_data_ptr<float>();
  } else if (row_sums) {
    *row_sums = a.sum(1);
  }
  run_product(p);
  return c;
}

Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 2 && x.size(-1) == weight.size(1),
              "linear: expected x [.., K] and weight [N, K], got ", x.sizes(), " and ",
              weight.sizes());
  TORCH_CHECK(x.scalar_type() == weight.scalar_type() && x.device() == weight.device(),
              "linear: expected x and weight of one type on one device, got ", x.scalar_type(), " ",
              x.device(), " and ", weight.scalar_type(), " ", weight.device());
  if (bias) {
    TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0) &&
                    bias->scalar_type() == x.scalar_type() && bias->device() == x.device(),
                "linear: expected a bias [", weight.size(0), "] of x's type and device, got ",
                bias->sizes(), " ", bias->scalar_type(), " ", bias->device());
  }
  const Tensor rows = as_rows(x);
  auto sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  if (!takes_onednn(ProductKind::kForward, rows.size(0), x)) {
    // Not of x: with three dimensions torch may take another path, and the bits with it.
    return at::linear(rows, weight, bias).view(sizes);
  }
  const std::optional<Tensor> dense = bias ? std::optional(bias->contiguous()) : std::nullopt;
  return product(rows, weight.t(), dense ? &*dense : nullptr).view(sizes);
}

// grad^T x, and the sum of grad's rows where wanted. With `by_columns` its columns are contiguous.
Tensor grad_of_weight(const Tensor& grad, const Tensor& x, bool by_columns, Tensor* grad_bias) {
  if (!takes_onednn(ProductKind::kGradWeight, x.size(0), x)) {
    if (grad_bias) *grad_bias = grad.sum(0);
    return by_columns ? x.t().mm(grad).t() : grad.t().mm(x);
  }
  if (!by_columns) return product(grad.t(), x, nullptr, grad_bias);
  if (grad_bias) *grad_bias = grad.sum(0);
  return product(x.t(), grad).t();
}

std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& grad_in,
                                                   const std::optional<Tensor>& x,
                                                   const std::optional<Tensor>& weight,
                                                   bool by_columns, bool want_bias) {
  TORCH_CHECK(grad_in.dim() >= 1, "linear_backward: expected a gradient [.., N]");
  const Tensor grad = readable(as_rows(grad_in));
  const auto none = [&] { return at::empty({0}, grad_in.options()); };
  Tensor grad_x = none(), grad_weight = none(), grad_bias = none();
  if (weight) {
    TORCH_CHECK(weight->dim() == 2 && weight->size(0) == grad.size(1) &&
                    weight->scalar_type() == grad.scalar_type(),
                "linear_backward: expected a gradient [.., N] and weight [N, K] of one type, got ",
                grad_in.sizes(), " ", grad.scalar_type(), " and ", weight->sizes(), " ",
                weight->scalar_type());
    auto sizes = grad_in.sizes().vec();
    sizes.back() = weight->size(1);
    const bool is_ours = takes_onednn(ProductKind::kGradInput, grad.size(0), grad);
    grad_x = (is_ours ? product(grad, *weight) : grad.mm(*weight)).view(sizes);
  }
  if (x) {
    const Tensor rows = x->dim() >= 1 ? as_rows(*x) : *x;
    TORCH_CHECK(
        rows.dim() == 2 && rows.size(0) == grad.size(0) && rows.scalar_type() == grad.scalar_type(),
        "linear_backward: expected a gradient [.., N] and x [.., K] of one type, got ",
        grad_in.sizes(), " ", grad.scalar_type(), " and ", x->sizes(), " ", x->scalar_type());
    grad_weight = grad_of_weight(grad, rows, by_columns, want_bias ? &grad_bias : nullptr);
  } else if (want_bias) {
    grad_bias = grad.sum(0);
  }
  return {grad_x, grad_weight, grad_bias};
}

void check_bmm(const Tensor& a, const Tensor& b) {
  TORCH_CHECK(a.dim() == 3 && b.dim() == 3 && a.size(0) == b.size(0) && a.size(2) == b.size(1) &&
                  a.scalar_type() == b.scalar_type() && a.device() == b.device(),
              "bmm: expected a [B, M, K] and b [B, K, N] of one type on one device, got ",
              a.sizes(), " ", a.scalar_type(), " and ", b.sizes(), " ", b.scalar_type());
}

void run_bmm(const Tensor& a_in, const Tensor& b_in, const Tensor& out) {
  const Tensor a = readable(a_in), b = readable(b_in);
  run_products({operand(a), operand(b), out.mutable_data_ptr<float>()},
               {a.stride(0), b.stride(0), a.size(1) * b.size(2)}, a.size(0));
}

Tensor bmm(const Tensor& a, const Tensor& b) {
  check_bmm(a, b);
  if (!takes_onednn(ProductKind::kBatched, a.size(1), a)) return at::bmm(a, b);
  Tensor out = at::empty({a.size(0), a.size(1), b.size(2)}, a.options());
  run_bmm(a, b, out);
  return out;
}

void bmm_out(const Tensor& a, const Tensor& b, Tensor out) {
  check_bmm(a, b);
  TORCH_CHECK(out.dim() == 3 && out.size(0) == a.size(0) && out.size(1) == a.size(1) &&
                  out.size(2) == b.size(2) && out.scalar_type() == a.scalar_type() &&
                  out.device() == a.device() && out.is_contiguous(),
              "bmm: expected a contiguous out [", a.size(0), ", ", a.size(1), ", ", b.size(2),
              "] of a's type and device, got ", out.sizes(), " ", out.scalar_type(),
              " with strides ", out.strides());
  if (takes_onednn(ProductKind::kBatched, a.size(1), a)) {
    run_bmm(a, b, out);
  } else {
    at::bmm_out(out, a, b);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CPU, m) {
  m.impl("linear", &linear);
  m.impl("linear_backward", &linear_backward);
  m.impl("bmm", &bmm);
  m.impl("bmm_out", &bmm_out);
}

}  // namespace clipfast
