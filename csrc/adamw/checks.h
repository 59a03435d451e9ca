// The checks of the AdamW operators' arguments, which are the same on every device.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <optional>
#include <vector>

#include "adamw.h"

namespace clipfast::adamw {

// The lists of torch.ops.clipfast.adamw_; declaration.py has the schema. Views: valid during the
// call.
struct StepLists {
  at::TensorList params, grads, exp_avgs, exp_avg_sqs, exponents, masters, steps;
};

// All of its arguments whose tensors it reads or writes.
struct StepTensors : StepLists {
  // Of pieces; starts is empty where every tensor is one.
  at::IntArrayRef first_elements, starts;
  const at::Tensor& control;
};

// What remains of a call after its checks: tensors without elements are left out.
struct CheckedStep {
  std::vector<TensorSlot> slots;
  StepOptions options;
};

// Checks everything that needs no value from a device and collects the pointers.
//   device: where every tensor has to be.
CheckedStep check_and_collect(const StepTensors& tensors, const Hyperparameters& hyper,
                              int64_t seed, bool stochastic, c10::string_view grid,
                              c10::DeviceType device);

// Whether the lists are what one call takes, and all of these types and on this device: so far as
// that needs no value.
//   master: the masters' type; none where there are no masters
bool lists_fit(const StepLists& lists, at::ScalarType dtype, at::ScalarType statistics,
               std::optional<at::ScalarType> master, c10::Device device);

// As check_and_collect, for torch.ops.clipfast.adamw_grad_norm. All on one device, which is
// that of the result.
std::vector<GradSlot> collect_gradients(at::TensorList grads, c10::DeviceType device);

}  // namespace clipfast::adamw
