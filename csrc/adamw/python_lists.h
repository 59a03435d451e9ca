// What Python asks about its lists of tensors before it hands them to torch.ops.clipfast.adamw_.
#pragma once

#include <pybind11/pybind11.h>

namespace clipfast {

// Adds adamw_lists_fit to clipfast._C.
void bind_adamw_lists(pybind11::module_& m);

}  // namespace clipfast
