// The host code of the emulated operators: those of the contrastive loss and of AdamW as they are,
// and the launches of csrc/normalize as operators (normalize.cpp would bring its CPU operators
// along, which belong to another build). One file, since torch's headers take longer to compile
// than all the rest.
#include "registration.h"

#include "adamw/adamw.cpp"
#include "adamw/cuda/adamw_cuda.cpp"
#include "contrastive/cuda/gemm.cpp"
#include "contrastive/cuda/rows.cpp"
#include "contrastive/cuda/softmax.cpp"
#include "contrastive/cuda/strip.cpp"
#include "contrastive/cuda/strip_walk.cpp"
#include "normalize/normalize.h"

namespace clipfast {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor> l2_normalize(const Tensor& x, double eps,
                                        std::optional<at::ScalarType> out_dtype) {
  const auto type = x.scalar_type(), y_type = out_dtype.value_or(type);
  const Tensor y = at::empty(x.sizes(), x.options().dtype(y_type));
  const Tensor inv_norm = at::empty({x.size(0)}, x.options().dtype(accumulate_type(type)));
  check_launch(launch_l2_normalize({to_rows(x), to_mutable_rows(y), inv_norm.mutable_data_ptr(),
                                    x.size(0), x.size(1), eps},
                                   nullptr),
               "l2_normalize");
  return {y, inv_norm};
}

Tensor l2_normalize_backward(const Tensor& grad_y, const Tensor& x, const Tensor& inv_norm) {
  const Tensor grad_x = at::empty(x.sizes(), x.options());
  check_launch(launch_l2_normalize_backward(
                   {to_rows(grad_y), to_rows(x), inv_norm.const_data_ptr(),
                    to_mutable_rows(grad_x), x.size(0), x.size(1)},
                   nullptr),
               "l2_normalize_backward");
  return grad_x;
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CUDA, m) {
  m.impl("l2_normalize", &l2_normalize);
  m.impl("l2_normalize_backward", &l2_normalize_backward);
}

}  // namespace clipfast
