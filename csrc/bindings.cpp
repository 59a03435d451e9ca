// The module that Python imports to load the compiled operators. They register themselves from
// their own folders (TORCH_LIBRARY_IMPL); clipfast/ops/registry.py defines their schemas once they
// are loaded.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "adamw/python_lists.h"
#include "clipfast_build_info.h"  // written by setup.py
#include "common/brgemm.h"
#include "common/cpu_dispatch.h"
#include "contrastive/contrastive.h"
#include "products/library.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "clipfast's compiled operators; importing clipfast.ops makes them torch.ops.clipfast.*";
  // Asked for here so that a wrong CLIPFAST_CPU_CAPABILITY fails the import, not the first step.
  m.attr("cpu_capability") = clipfast::cpu_capability_name();
  m.attr("has_bfloat16_product") = clipfast::has_bfloat16_product();
  m.attr("has_float_product") = clipfast::has_brgemm(at::kFloat);
  m.def("set_libraries", &clipfast::set_libraries,
        "Fills the table of who multiplies; see clipfast/ops/products/library.py.");
  clipfast::bind_adamw_lists(m);
  m.def(
      "build_info",
      [] { return pybind11::module_::import("json").attr("loads")(CLIPFAST_BUILD_INFO); },
      "What setup.py built, and why anything was left out, as a dict.");
}
