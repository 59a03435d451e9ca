// The gradient of linear on the CPU, as torch's own operators have theirs.
//
// A gradient registered from Python keeps its tensors after the product has run, and costs Python's
// time at each layer. This one keeps them before: a recomputation that only wants them (see
// torch.utils.checkpoint) then stops before it multiplies.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/intrusive_ptr.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace clipfast {
namespace {

using at::Tensor;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

Tensor call_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("clipfast::linear", "")
                             .typed<Tensor(const Tensor&, const Tensor&, const OptionalTensor&)>();
  return op.call(x, weight, bias);
}

std::tuple<Tensor, Tensor, Tensor> call_backward(const Tensor& grad, const OptionalTensor& x,
                                                 const OptionalTensor& weight, bool by_columns,
                                                 bool want_bias) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("clipfast::linear_backward", "")
          .typed<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const OptionalTensor&,
                                                    const OptionalTensor&, bool, bool)>();
  return op.call(grad, x, weight, by_columns, want_bias);
}

// std::shared_ptr up to torch 2.11, c10::intrusive_ptr in 2.13.
using NodePointer = decltype(torch::autograd::Edge::function);

template <typename Pointer, typename T>
Pointer make_node() {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<torch::autograd::Node>>) {
    return std::make_shared<T>();
  } else {
    return c10::make_intrusive<T>();
  }
}

struct LinearBackward : torch::autograd::Node {
  SavedVariable x, weight;
  bool by_columns = false;

  std::string name() const override { return "ClipfastLinearBackward"; }

  variable_list apply(variable_list&& grads) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(3);
    const auto given = [&](size_t result, const SavedVariable& saved) -> OptionalTensor {
      if (!task_should_compute_output(result)) return std::nullopt;
      return saved.unpack();
    };
    const bool wants_bias = task_should_compute_output(2);
    const OptionalTensor weight_then = given(0, weight), x_then = given(1, x);
    auto [grad_x, grad_weight, grad_bias] =
        call_backward(grads[0], x_then, weight_then, by_columns, wants_bias);
    return {weight_then ? grad_x : Tensor(), x_then ? grad_weight : Tensor(),
            wants_bias ? grad_bias : Tensor()};
  }

  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    x.reset_data();
    weight.reset_data();
  }
};

Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias_in) {
  const Tensor bias = bias_in.value_or(Tensor());
  TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(x) &&
                                  !torch::autograd::isFwGradDefined(weight) &&
                                  !torch::autograd::isFwGradDefined(bias),
                              "clipfast::linear has no forward-mode derivative");
  LinearBackward* node = nullptr;
  NodePointer owner;
  if (torch::autograd::compute_requires_grad(x, weight, bias)) {
    owner = make_node<NodePointer, LinearBackward>();
    node = static_cast<LinearBackward*>(owner.get());
    node->set_next_edges(torch::autograd::collect_next_edges(x, weight, bias));
    if (node->should_compute_output(0)) node->weight = SavedVariable(weight, false);
    if (node->should_compute_output(1)) node->x = SavedVariable(x, false);
    node->by_columns = weight.dim() == 2 && weight.stride(0) == 1 && weight.stride(1) != 1;
  }
  Tensor y = [&] {
    at::AutoDispatchBelowADInplaceOrView below;
    return call_linear(x, weight, bias_in);
  }();
  if (node) torch::autograd::set_history(y, owner);
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, AutogradCPU, m) { m.impl("linear", &linear); }

}  // namespace clipfast
