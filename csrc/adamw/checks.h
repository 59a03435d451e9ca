// The checks of the AdamW operators' arguments, which are the same on every device.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <vector>

#include "adamw.h"

namespace clipfast::adamw {

// The arguments of torch.ops.clipfast.adamw_ whose tensors it reads or writes; bindings.cpp has the
// schema. Views: valid during the call.
struct StepTensors {
  at::TensorList params, grads, exp_avgs, exp_avg_sqs, exponents, masters, steps;
  at::IntArrayRef first_elements;
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

// The same for torch.ops.clipfast.adamw_grad_norm. All on one device, which is that of the result.
std::vector<GradSlot> collect_gradients(at::TensorList grads, c10::DeviceType device);

}  // namespace clipfast::adamw
