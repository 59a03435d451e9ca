// Checks, allocation and registration of the batch norm operators.
#include "batch_norm.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "common/cpu_threads.h"
#include "common/torch_types.h"

namespace clipfast {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr auto kFormat = at::MemoryFormat::ChannelsLast;

// Results at least this large go past the cache: about what of a shared last level a tensor can
// hope to keep until its next reader.
constexpr int64_t kStreamedBytes = int64_t{16} << 20;

BatchNormRows shape_of(const Tensor& x) {
  TORCH_CHECK(x.dim() == 4 && x.numel() > 0,
              "batch norm: expected x of shape [B, C, H, W] that is not empty, got ", x.sizes());
  const int64_t channels = x.size(1), rows = x.numel() / channels;
  // Few enough rows for float32 sums, enough to make the tiles' sums a small part of x.
  const int64_t tile_rows = std::clamp<int64_t>(16384 / channels, 16, 64);
  const bool aligned = channels * x.element_size() % 64 == 0;
  const bool streams = aligned && x.numel() * x.element_size() >= kStreamedBytes;
  return {to_dtype(x.scalar_type()), rows, channels, x.size(3), tile_rows, streams};
}

// A channels_last tensor of the sizes and type of x, for the kernels to read.
Tensor rows_like(const Tensor& t, const Tensor& x, const char* name) {
  TORCH_CHECK(t.sizes() == x.sizes() && t.scalar_type() == x.scalar_type(), "batch norm: expected ",
              name, " of shape ", x.sizes(), " and type ", x.scalar_type(), " like x, got ",
              t.sizes(), " ", t.scalar_type());
  return t.contiguous(kFormat);
}

Tensor vector_like(const Tensor& t, const Tensor& x, const char* name) {
  const auto type = accumulate_type(x.scalar_type());
  TORCH_CHECK(t.dim() == 1 && t.size(0) == x.size(1) && t.scalar_type() == type,
              "batch norm: expected ", name, " of shape [", x.size(1), "] and type ", type,
              ", got ", t.sizes(), " ", t.scalar_type());
  return t.contiguous();
}

Tensor empty_rows(const Tensor& x) { return at::empty(x.sizes(), x.options(), kFormat); }

Tensor empty_acc(at::IntArrayRef sizes, const Tensor& x) {
  return at::empty(sizes, x.options().dtype(accumulate_type(x.scalar_type())));
}

void check_poolable(const Tensor& x) {
  TORCH_CHECK(x.size(2) % 2 == 0 && x.size(3) % 2 == 0,
              "batch norm: a 2x2 average pool needs an even height and width, got x ", x.sizes());
}

void check_cpu(const Tensor& t) {
  TORCH_CHECK(t.device().is_cpu(), "batch norm: expected tensors on the CPU, got ", t.device());
}

// Tiles that a thread takes at the least.
int64_t tile_grain(const BatchNormRows& shape) {
  return std::max<int64_t>(1, row_grain(shape.channels) / shape.tile_rows);
}

template <typename Kernel, typename Args>
void run_channels(Kernel* kernel, const Args& args, const BatchNormRows& shape) {
  // A multiple of the kernel's block, so that no thread takes a part of one.
  const int64_t grain = (std::max<int64_t>(32, row_grain(shape.tiles())) + 31) / 32 * 32;
  run_range(kernel, args, shape.channels, grain);
}

std::tuple<Tensor, Tensor, Tensor> statistics(const Tensor& x_in, double eps) {
  const auto shape = shape_of(x_in);
  const Tensor x = x_in.contiguous(kFormat);
  const Tensor moments = empty_acc({shape.tiles(), 3, shape.channels}, x);
  Tensor mean = empty_acc({shape.channels}, x);
  Tensor inv_std = at::empty_like(mean), var = at::empty_like(mean);
  run_range(CLIPFAST_CPU_KERNEL(batch_norm_moments),
            BatchNormMomentArgs{shape, x.const_data_ptr(), moments.mutable_data_ptr()},
            shape.tiles(), tile_grain(shape));
  run_channels(
      CLIPFAST_CPU_KERNEL(batch_norm_statistics),
      BatchNormStatisticsArgs{shape, moments.const_data_ptr(), eps, mean.mutable_data_ptr(),
                              inv_std.mutable_data_ptr(), var.mutable_data_ptr()},
      shape);
  return {mean, inv_std, var};
}

std::tuple<Tensor, Tensor> apply(const Tensor& x_in, const Tensor& mean_in, const Tensor& inv_std,
                                 const Tensor& weight, const Tensor& bias_in,
                                 const OptionalTensor& residual_in, bool relu, bool want_y,
                                 bool want_pooled) {
  const auto shape = shape_of(x_in);
  TORCH_CHECK(want_y || want_pooled, "batch_norm_apply: expected want_y or want_pooled");
  if (want_pooled) check_poolable(x_in);
  const Tensor x = x_in.contiguous(kFormat);
  const Tensor mean = vector_like(mean_in, x, "mean"), bias = vector_like(bias_in, x, "bias");
  const Tensor scale =
      at::mul(vector_like(inv_std, x, "inv_std"), vector_like(weight, x, "weight"));
  Tensor residual;
  if (residual_in) {
    check_cpu(*residual_in);
    residual = rows_like(*residual_in, x, "residual");
  }
  Tensor y = want_y ? empty_rows(x) : at::empty({0}, x.options());
  Tensor pooled = want_pooled ? at::empty({x.size(0), x.size(1), x.size(2) / 2, x.size(3) / 2},
                                          x.options(), kFormat)
                              : at::empty({0}, x.options());
  const BatchNormApplyArgs args{shape,
                                x.const_data_ptr(),
                                residual_in ? residual.const_data_ptr() : nullptr,
                                mean.const_data_ptr(),
                                scale.const_data_ptr(),
                                bias.const_data_ptr(),
                                want_y ? y.mutable_data_ptr() : nullptr,
                                want_pooled ? pooled.mutable_data_ptr() : nullptr,
                                relu};
  auto* kernel = CLIPFAST_CPU_KERNEL(batch_norm_apply);
  if (want_pooled) {
    run_range(kernel, args, shape.rows / shape.width / 2,
              row_grain(2 * shape.width * shape.channels));
  } else {
    run_range(kernel, args, shape.tiles(), tile_grain(shape));
  }
  return {y, pooled};
}

// A gradient of y or of its pooled rows; the Tensor keeps a converted copy alive.
BatchNormGradient gradient_of(const OptionalTensor& grad, const Tensor& x, Tensor& held) {
  if (!grad) return {nullptr, false};
  check_cpu(*grad);
  TORCH_CHECK(grad->dim() == 4 && grad->scalar_type() == x.scalar_type(),
              "batch_norm_backward: expected a gradient [B, C, H, W] of type ", x.scalar_type(),
              ", got ", grad->sizes(), " ", grad->scalar_type());
  const bool pooled = grad->sizes() != x.sizes();
  if (pooled) {
    check_poolable(x);
    TORCH_CHECK(grad->size(0) == x.size(0) && grad->size(1) == x.size(1) &&
                    grad->size(2) * 2 == x.size(2) && grad->size(3) * 2 == x.size(3),
                "batch_norm_backward: expected a gradient of the shape of x ", x.sizes(),
                ", or of half its height and width, got ", grad->sizes());
  }
  held = grad->contiguous(kFormat);
  return {held.const_data_ptr(), pooled};
}

// What both halves of the backward pass read; the Tensors keep converted copies alive.
struct BackwardInputs {
  Tensor x, mean, inv_std, bias, scale, y, held, other_held;
  BatchNormSumArgs args;

  BackwardInputs(const OptionalTensor& grad, const OptionalTensor& other, const Tensor& x_in,
                 const OptionalTensor& y_in, const Tensor& mean_in, const Tensor& inv_std_in,
                 const Tensor& weight, const Tensor& bias_in, bool relu)
      : args{shape_of(x_in)} {
    TORCH_CHECK(grad || other, "batch_norm_backward: expected a gradient");
    x = x_in.contiguous(kFormat);
    mean = vector_like(mean_in, x, "mean");
    bias = vector_like(bias_in, x, "bias");
    inv_std = vector_like(inv_std_in, x, "inv_std");
    scale = at::mul(inv_std, vector_like(weight, x, "weight"));
    if (relu && y_in) y = rows_like(*y_in, x, "y");
    args.grad = gradient_of(grad ? grad : other, x, held);
    args.other = gradient_of(grad ? other : std::nullopt, x, other_held);
    args.x = x.const_data_ptr();
    args.y = y.defined() ? y.const_data_ptr() : nullptr;
    args.mean = mean.const_data_ptr();
    args.scale = scale.const_data_ptr();
    args.bias = bias.const_data_ptr();
    args.relu = relu;
    args.grad_residual = nullptr;
    args.sums = nullptr;
  }
};

// The sums over this tensor's rows, and what they mean for grad_x where no other rows share the
// statistics. Leaves the residual's gradient in `in`, which then reads it in place of the others.
struct BackwardSums {
  Tensor grad_residual, grad_weight, grad_bias, slope, offset;

  BackwardSums(BackwardInputs& in, bool want_residual) {
    const auto shape = in.args.shape;
    grad_residual = want_residual ? empty_rows(in.x) : at::empty({0}, in.x.options());
    const Tensor sums = empty_acc({shape.tiles(), 2, shape.channels}, in.x);
    grad_weight = empty_acc({shape.channels}, in.x);
    grad_bias = at::empty_like(grad_weight);
    slope = at::empty_like(grad_weight);
    offset = at::empty_like(grad_weight);
    in.args.grad_residual = want_residual ? grad_residual.mutable_data_ptr() : nullptr;
    in.args.sums = sums.mutable_data_ptr();
    run_range(CLIPFAST_CPU_KERNEL(batch_norm_sums), in.args, shape.tiles(), tile_grain(shape));
    run_channels(CLIPFAST_CPU_KERNEL(batch_norm_coefficients),
                 BatchNormCoefficientArgs{shape, sums.const_data_ptr(), in.inv_std.const_data_ptr(),
                                          in.scale.const_data_ptr(), grad_weight.mutable_data_ptr(),
                                          grad_bias.mutable_data_ptr(), slope.mutable_data_ptr(),
                                          offset.mutable_data_ptr()},
                 shape);
  }
};

Tensor grad_x_of(const BackwardInputs& in, const Tensor& slope, const Tensor& offset) {
  Tensor grad_x = empty_rows(in.x);
  run_range(CLIPFAST_CPU_KERNEL(batch_norm_grad_x),
            BatchNormGradXArgs{in.args, slope.const_data_ptr(), offset.const_data_ptr(),
                               grad_x.mutable_data_ptr()},
            in.args.shape.tiles(), tile_grain(in.args.shape));
  return grad_x;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const OptionalTensor& grad,
                                                    const OptionalTensor& other, const Tensor& x,
                                                    const OptionalTensor& y, const Tensor& mean,
                                                    const Tensor& inv_std, const Tensor& weight,
                                                    const Tensor& bias, bool relu,
                                                    bool want_residual) {
  BackwardInputs in(grad, other, x, y, mean, inv_std, weight, bias, relu);
  const BackwardSums sums(in, want_residual);
  const Tensor grad_x = grad_x_of(in, sums.slope, sums.offset);
  return {grad_x, sums.grad_residual, sums.grad_weight, sums.grad_bias};
}

// The first half of `backward`, where the rows of other tensors share the statistics.
std::tuple<Tensor, Tensor, Tensor> gradient_sums(const OptionalTensor& grad,
                                                 const OptionalTensor& other, const Tensor& x,
                                                 const OptionalTensor& y, const Tensor& mean,
                                                 const Tensor& inv_std, const Tensor& weight,
                                                 const Tensor& bias, bool relu,
                                                 bool want_residual) {
  BackwardInputs in(grad, other, x, y, mean, inv_std, weight, bias, relu);
  const BackwardSums sums(in, want_residual);
  return {sums.grad_residual, sums.grad_weight, sums.grad_bias};
}

// The second half: grad_weight and grad_bias are the sums over all rows that share the statistics.
Tensor gradient_x(const OptionalTensor& grad, const OptionalTensor& other, const Tensor& x,
                  const OptionalTensor& y, const Tensor& mean, const Tensor& inv_std,
                  const Tensor& weight, const Tensor& bias, bool relu, const Tensor& grad_weight,
                  const Tensor& grad_bias, int64_t count) {
  TORCH_CHECK(count > 0, "batch_norm_gradient_x: expected a positive count, got ", count);
  const BackwardInputs in(grad, other, x, y, mean, inv_std, weight, bias, relu);
  const Tensor share = at::mul(in.scale, -1.0 / static_cast<double>(count));
  const Tensor offset = at::mul(share, vector_like(grad_bias, in.x, "grad_bias"));
  const Tensor slope =
      at::mul(at::mul(share, in.inv_std), vector_like(grad_weight, in.x, "grad_weight"));
  return grad_x_of(in, slope, offset);
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CPU, m) {
  m.impl("batch_norm_statistics", &statistics);
  m.impl("batch_norm_apply", &apply);
  m.impl("batch_norm_backward", &backward);
  m.impl("batch_norm_gradient_sums", &gradient_sums);
  m.impl("batch_norm_gradient_x", &gradient_x);
}

}  // namespace clipfast
