// A function of Python and no operator: torch's dispatcher takes ten times as long to copy hundreds
// of tensors into its own lists as the checks take.
#include "python_lists.h"

#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <vector>

#include "checks.h"

namespace clipfast {
namespace {

namespace py = pybind11;

// False where something is no plain tensor: classes with rules of their own are among those.
bool unpack(const py::list& list, std::vector<at::Tensor>& tensors) {
  tensors.reserve(list.size());
  for (const py::handle item : list) {
    if (!THPVariable_CheckExact(item.ptr())) return false;
    tensors.push_back(THPVariable_Unpack(item.ptr()));
  }
  return true;
}

bool lists_fit(const py::list& params, const py::list& grads, const py::list& exp_avgs,
               const py::list& exp_avg_sqs, const py::list& exponents, const py::list& masters,
               const py::list& steps, at::ScalarType dtype, at::ScalarType stats_dtype,
               std::optional<at::ScalarType> master_dtype, at::Device device) {
  std::vector<at::Tensor> p, g, m, v, e, w, s;
  const bool are_plain = unpack(params, p) && unpack(grads, g) && unpack(exp_avgs, m) &&
                         unpack(exp_avg_sqs, v) && unpack(exponents, e) && unpack(masters, w) &&
                         unpack(steps, s);
  return are_plain &&
         adamw::lists_fit({p, g, m, v, e, w, s}, dtype, stats_dtype, master_dtype, device);
}

}  // namespace

void bind_adamw_lists(py::module_& m) {
  m.def("adamw_lists_fit", &lists_fit,
        "Whether torch.ops.clipfast.adamw_ can take the lists; see clipfast/ops/adamw/lists.py.");
}

}  // namespace clipfast
