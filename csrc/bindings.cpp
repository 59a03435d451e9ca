// The schemas of every clipfast operator, and the module that Python imports to load them.
// Implementations register themselves from their own folders.
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include "clipfast_build_info.h"  // written by setup.py
#include "cpu_dispatch.h"

TORCH_LIBRARY(clipfast, m) {
  // y[i] = x[i] * inv_norm[i], inv_norm[i] = 1 / |x[i]|, or 0 where |x[i]| <= eps.
  m.def(
      "l2_normalize(Tensor x, float eps, ScalarType? out_dtype=None) -> (Tensor y, Tensor "
      "inv_norm)");
  // grad_x[i] = (grad_y[i] - u <u, grad_y[i]>) * inv_norm[i] with u = x[i] * inv_norm[i].
  m.def("l2_normalize_backward(Tensor grad_y, Tensor x, Tensor inv_norm) -> Tensor grad_x");
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "clipfast's compiled operators; importing it registers them as torch.ops.clipfast.*";
  // Asked for here so that a wrong CLIPFAST_CPU_CAPABILITY fails the import, not the first step.
  m.attr("cpu_capability") = clipfast::cpu_capability_name();
  m.def(
      "build_info",
      [] { return pybind11::module_::import("json").attr("loads")(CLIPFAST_BUILD_INFO); },
      "What setup.py built, and why anything was left out, as a dict.");
}
