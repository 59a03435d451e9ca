// The schemas of every clipfast operator, and the module that Python imports to load them.
// Implementations register themselves from their own folders.
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include "clipfast_build_info.h"  // written by setup.py
#include "common/cpu_dispatch.h"
#include "contrastive/contrastive.h"

TORCH_LIBRARY(clipfast, m) {
  // y[i] = x[i] * inv_norm[i], inv_norm[i] = 1 / |x[i]|, or 0 where |x[i]| <= eps.
  m.def(
      "l2_normalize(Tensor x, float eps, ScalarType? out_dtype=None) -> (Tensor y, Tensor "
      "inv_norm)");
  // grad_x[i] = (grad_y[i] - u <u, grad_y[i]>) * inv_norm[i] with u = x[i] * inv_norm[i].
  m.def("l2_normalize_backward(Tensor grad_y, Tensor x, Tensor inv_norm) -> Tensor grad_x");

  // The contrastive loss on one rank's strip; clipfast/ops/contrastive.py has the equations.
  m.def(
      "contrastive_prepare(Tensor x, bool normalize, ScalarType? work_dtype) -> (Tensor work, "
      "Tensor inverse_norm, Tensor factor, Tensor norm)");
  m.def(
      "contrastive_diagonal(Tensor x, Tensor y, Tensor x_inverse_norm, Tensor y_inverse_norm) -> "
      "Tensor");
  m.def(
      "contrastive_finish(Tensor grad, Tensor x, Tensor other, Tensor inverse_norm, Tensor "
      "other_inverse_norm, Tensor factor, Tensor diagonal, Tensor coefficient, bool normalize) -> "
      "(Tensor grad_x, Tensor dot)");
  m.def(
      "contrastive_statistics(Tensor x, Tensor y, Tensor row_factor, Tensor column_factor, Tensor "
      "scale, Tensor bound, int first_column, bool keep, int workspace_bytes) -> (Tensor row_max, "
      "Tensor row_sum, Tensor column_max, Tensor column_sum, Tensor shift, Tensor kept)");
  m.def(
      "contrastive_gradients(Tensor x, Tensor y, Tensor row_factor, Tensor column_factor, Tensor "
      "scale, Tensor bound, Tensor shift, Tensor row_lse, Tensor column_lse, Tensor kept, int "
      "first_column, bool want_rows, bool want_columns, int workspace_bytes) -> (Tensor row_grad, "
      "Tensor column_grad)");

  // Batch norm with a batch's statistics; csrc/batch_norm/batch_norm.h has the equations.
  m.def("batch_norm_statistics(Tensor x, float eps) -> (Tensor mean, Tensor inv_std, Tensor var)");
  m.def(
      "batch_norm_apply(Tensor x, Tensor mean, Tensor inv_std, Tensor weight, Tensor bias, Tensor? "
      "residual, bool relu, bool want_y, bool want_pooled) -> (Tensor y, Tensor pooled)");
  m.def(
      "batch_norm_backward(Tensor? grad, Tensor? other, Tensor x, Tensor? y, Tensor mean, Tensor "
      "inv_std, Tensor weight, Tensor bias, bool relu, bool want_residual) -> (Tensor grad_x, "
      "Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)");

  // y = x sigmoid(1.702 x).
  m.def("quick_gelu(Tensor x) -> Tensor y");
  m.def("quick_gelu_backward(Tensor grad_y, Tensor x) -> Tensor grad_x");

  // AdamW with half-precision statistics and weights; csrc/adamw/element.h has the equations.
  m.def(
      "adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] "
      "exp_avg_sqs, Tensor(d!)[] exponents, Tensor(e!)[] masters, Tensor[] steps, int[] "
      "first_elements, Tensor control, *, float lr, float beta1, float beta2, float eps, float "
      "weight_decay, float maximum, int seed, bool stochastic, str grid) -> ()");
  m.def("adamw_grad_norm(Tensor[] grads) -> Tensor");
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "clipfast's compiled operators; importing it registers them as torch.ops.clipfast.*";
  // Asked for here so that a wrong CLIPFAST_CPU_CAPABILITY fails the import, not the first step.
  m.attr("cpu_capability") = clipfast::cpu_capability_name();
  m.attr("has_bfloat16_product") = clipfast::has_bfloat16_product();
  m.def(
      "build_info",
      [] { return pybind11::module_::import("json").attr("loads")(CLIPFAST_BUILD_INFO); },
      "What setup.py built, and why anything was left out, as a dict.");
}
