// The AdamW operators on CUDA: scratch, launches, registration. checks.h has what they ask for.
#ifdef CLIPFAST_CUDA

#include "adamw_cuda.h"

#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "adamw/checks.h"
#include "common/torch_cuda.h"

namespace clipfast::adamw {
namespace {

using at::Tensor;
using at::TensorList;

void adamw_cuda(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                TensorList exponents, TensorList masters, TensorList steps,
                at::IntArrayRef first_elements, const Tensor& control, double lr, double beta1,
                double beta2, double eps, double weight_decay, double maximum, int64_t seed,
                bool stochastic, c10::string_view grid, at::IntArrayRef starts) {
  const CheckedStep step = check_and_collect({params, grads, exp_avgs, exp_avg_sqs, exponents,
                                              masters, steps, first_elements, starts, control},
                                             {lr, beta1, beta2, eps, weight_decay, maximum}, seed,
                                             stochastic, grid, control.device().type());
  if (step.slots.empty()) return;
  const c10::cuda::CUDAGuard guard(control.device());
  check_launch(
      launch_adamw(step.slots.data(), static_cast<int64_t>(step.slots.size()), step.options,
                   at::cuda::getCurrentDeviceProperties()->multiProcessorCount, current_stream()),
      "adamw_");
}

Tensor adamw_grad_norm_cuda(TensorList grads) {
  TORCH_CHECK(!grads.empty(), "adamw_grad_norm: expected at least one gradient, got none");
  const c10::Device device = grads[0].device();
  const c10::cuda::CUDAGuard guard(device);
  const std::vector<GradSlot> slots = collect_gradients(grads, device.type());
  int64_t tiles = 0;
  for (const GradSlot& slot : slots) tiles += norm_tiles(slot);
  const auto options = at::TensorOptions().device(device);
  const Tensor partial = at::empty({tiles}, options.dtype(at::kDouble));
  const Tensor norm = at::empty({}, options.dtype(at::kFloat));
  check_launch(launch_adamw_grad_norm(slots.data(), static_cast<int64_t>(slots.size()),
                                      partial.mutable_data_ptr<double>(),
                                      norm.mutable_data_ptr<float>(), current_stream()),
               "adamw_grad_norm");
  return norm;
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CUDA, m) {
  m.impl("adamw_", &adamw_cuda);
  m.impl("adamw_grad_norm", &adamw_grad_norm_cuda);
}

}  // namespace clipfast::adamw

#endif  // CLIPFAST_CUDA
