// Checks of the AdamW operators, and their CPU implementation.
#include "adamw.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "checks.h"
#include "common/torch_types.h"

namespace clipfast {
namespace adamw {
namespace {

using at::Tensor;

DType checked_type(const Tensor& t, const char* list, size_t index) {
  const auto type = t.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, "adamw: expected ",
              list, "[", index, "] of type float32, float16 or bfloat16, got ", type);
  return to_dtype(type);
}

void check_place(const Tensor& t, c10::DeviceType device, const Tensor& first, const char* list,
                 size_t index) {
  TORCH_CHECK(t.device().type() == device && t.device() == first.device(), "adamw: expected ", list,
              "[", index, "] on ", first.device(), " like params[0], got ", t.device());
}

// Whether t lies in memory as like does: elements are taken in that order.
bool same_layout(const Tensor& t, const Tensor& like) {
  if (t.layout() != at::kStrided || t.sizes() != like.sizes()) return false;
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) > 1 && t.stride(d) != like.stride(d)) return false;
  }
  return true;
}

void check_layout(const Tensor& t, const Tensor& param, const char* list, size_t index) {
  TORCH_CHECK(same_layout(t, param), "adamw: expected ", list, "[", index, "] of shape ",
              param.sizes(), " and strides ", param.strides(), " like its parameter, got ",
              t.sizes(), t.layout() == at::kStrided ? c10::str(" ", t.strides()) : " not strided");
}

// A number on the device that holds the params.
void check_floats(const Tensor& t, int64_t numel, const char* list, size_t index) {
  TORCH_CHECK(t.scalar_type() == at::kFloat && t.numel() == numel && t.is_contiguous(),
              "adamw: expected ", list, "[", index, "] of ", numel,
              " adjacent float32 elements, got ", t.sizes(), " ", t.scalar_type());
}

WeightForm form_of(const Tensor& param, const Tensor* master, c10::string_view grid, size_t index) {
  const auto type = param.scalar_type();
  if (master != nullptr) {
    TORCH_CHECK(type != at::kFloat, "adamw: expected params[", index,
                "] of float16 or bfloat16 where masters are given, got float32, which is its own "
                "master");
    const auto master_type = master->scalar_type();
    TORCH_CHECK(master_type == at::kFloat || (master_type == at::kShort && type == at::kBFloat16),
                "adamw: expected masters[", index,
                "] of type float32, or int16 (remainders) with a bfloat16 parameter; got ",
                master_type, " with ", type);
    return master_type == at::kFloat ? WeightForm::kMaster : WeightForm::kRemainder;
  }
  if (grid.empty()) return type == at::kFloat ? WeightForm::kSingle : WeightForm::kStochastic;
  TORCH_CHECK(type == at::kFloat, "adamw: expected params[", index, "] of type float32 with grid '",
              grid, "', got ", type);
  return grid == "fp16" ? WeightForm::kGridHalf : WeightForm::kGridBfloat16;
}

void check_lists(const StepLists& t) {
  const size_t n = t.params.size();
  const auto check = [n](const char* list, size_t size, bool optional) {
    TORCH_CHECK(size == n || (optional && size == 0), "adamw: expected ", list, " of length ", n,
                " like params", optional ? " or empty" : "", ", got ", size);
  };
  check("grads", t.grads.size(), false);
  check("exp_avgs", t.exp_avgs.size(), false);
  check("exp_avg_sqs", t.exp_avg_sqs.size(), false);
  check("exponents", t.exponents.size(), true);
  check("masters", t.masters.size(), true);
  check("steps", t.steps.size(), false);
}

void check_options(const Hyperparameters& h, c10::string_view grid) {
  TORCH_CHECK(grid.empty() || grid == "bf16" || grid == "fp16",
              "adamw: expected grid '', 'bf16' or 'fp16', got '", grid, "'");
  TORCH_CHECK(std::isfinite(h.lr) && h.lr >= 0 && h.eps >= 0 && std::isfinite(h.weight_decay) &&
                  h.beta1 >= 0 && h.beta1 < 1 && h.beta2 >= 0 && h.beta2 < 1,
              "adamw: expected finite lr >= 0, eps >= 0, finite weight_decay and betas in [0, 1), "
              "got lr ",
              h.lr, ", eps ", h.eps, ", weight_decay ", h.weight_decay, ", betas ", h.beta1, " ",
              h.beta2);
  TORCH_CHECK(!std::isnan(h.maximum), "adamw: expected a maximum that is a number, got NaN");
}

void check_exponents(const Tensor& t, int64_t numel, size_t index) {
  TORCH_CHECK(t.scalar_type() == at::kChar && t.is_contiguous() && t.dim() == 2 && t.size(0) == 2 &&
                  t.size(1) == blocks_of(numel),
              "adamw: expected exponents[", index, "] of shape [2, ", blocks_of(numel),
              "], adjacent int8, got ", t.sizes(), " ", t.scalar_type());
}

const Tensor* optional_at(at::TensorList list, size_t i) {
  return list.empty() ? nullptr : &list[i];
}

// The tensors of one parameter against each other.
void check_tensors(const StepLists& t, size_t i, at::ScalarType statistics,
                   c10::DeviceType device) {
  const Tensor &param = t.params[i], &grad = t.grads[i], &m = t.exp_avgs[i], &v = t.exp_avg_sqs[i];
  const Tensor* master = optional_at(t.masters, i);
  const Tensor* exponents = optional_at(t.exponents, i);
  TORCH_CHECK(param.is_non_overlapping_and_dense(), "adamw: expected params[", i,
              "] whose elements fill its memory, got shape ", param.sizes(), " and strides ",
              param.strides());
  const auto check = [&](const Tensor& tensor, const char* list) {
    check_place(tensor, device, t.params[0], list, i);
    check_layout(tensor, param, list, i);
  };
  check(param, "params");
  check(grad, "grads");
  check(m, "exp_avgs");
  check(v, "exp_avg_sqs");
  if (master != nullptr) check(*master, "masters");
  TORCH_CHECK(m.scalar_type() == statistics && v.scalar_type() == statistics,
              "adamw: expected exp_avgs and exp_avg_sqs of one type, ", statistics,
              " as exp_avgs[0] is, got ", m.scalar_type(), " and ", v.scalar_type(), " at ", i);
  check_floats(t.steps[i], 1, "steps", i);
  check_place(t.steps[i], device, t.params[0], "steps", i);
  if (exponents != nullptr) {
    check_exponents(*exponents, param.numel(), i);
    check_place(*exponents, device, t.params[0], "exponents", i);
  }
}

// Elements [start, start + numel) of a tensor, in the order of memory.
struct Piece {
  int64_t start, numel, first_element;
};

// visit(piece) for the pieces of params[i], of which the first is number next; next is then the
// first of the next tensor.
template <typename Visit>
void visit_pieces(const StepTensors& t, size_t i, size_t& next, const Visit& visit) {
  const size_t n = t.first_elements.size();
  const int64_t numel = t.params[i].numel();
  TORCH_CHECK(next < n && (t.starts.empty() || t.starts[next] == 0),
              "adamw: expected a 0 among starts for each of ", t.params.size(),
              " tensors, found none for params[", i, "]");
  int64_t start = 0;
  for (bool is_last = false; !is_last;) {
    const int64_t first_element = t.first_elements[next++];
    TORCH_CHECK(first_element >= 0 && first_element % kBlock == 0,
                "adamw: expected first_elements[", next - 1, "] to be a multiple of ", kBlock,
                ", got ", first_element);
    is_last = t.starts.empty() || next == n || t.starts[next] == 0;
    const int64_t end = is_last ? numel : t.starts[next];
    TORCH_CHECK(is_last || (end > start && end < numel && end % kBlock == 0),
                "adamw: expected starts[", next, "] above ", start, " and below the ", numel,
                " elements of params[", i, "], a multiple of ", kBlock, "; got ", end);
    visit(Piece{start, end - start, first_element});
    start = end;
  }
}

void* moved(const Tensor* t, int64_t start) {
  if (t == nullptr) return nullptr;
  return static_cast<char*>(t->mutable_data_ptr()) +
         start * static_cast<int64_t>(t->element_size());
}

TensorSlot collect_slot(const StepTensors& t, size_t i, const Piece& piece, c10::string_view grid) {
  const Tensor &param = t.params[i], &grad = t.grads[i], &m = t.exp_avgs[i], &v = t.exp_avg_sqs[i];
  const Tensor* master = optional_at(t.masters, i);
  const Tensor* exponents = optional_at(t.exponents, i);
  auto* exponent = static_cast<int8_t*>(moved(exponents, piece.start / kBlock));
  return {moved(&param, piece.start),
          static_cast<const char*>(grad.const_data_ptr()) +
              piece.start * static_cast<int64_t>(grad.element_size()),
          moved(&m, piece.start),
          moved(&v, piece.start),
          exponent,
          exponent == nullptr ? nullptr : exponent + blocks_of(param.numel()),
          moved(master, piece.start),
          t.steps[i].const_data_ptr<float>(),
          piece.numel,
          piece.first_element,
          checked_type(param, "params", i),
          checked_type(grad, "grads", i),
          form_of(param, master, grid, i)};
}

}  // namespace

CheckedStep check_and_collect(const StepTensors& t, const Hyperparameters& hyper, int64_t seed,
                              bool stochastic, c10::string_view grid, c10::DeviceType device) {
  check_lists(t);
  const size_t pieces = t.starts.empty() ? t.params.size() : t.starts.size();
  TORCH_CHECK(t.first_elements.size() == pieces, "adamw: expected first_elements of length ",
              pieces, " like ", t.starts.empty() ? "params" : "starts", ", got ",
              t.first_elements.size());
  check_options(hyper, grid);
  CheckedStep step{{}, {hyper, nullptr, static_cast<uint64_t>(seed), DType::kFloat32, stochastic}};
  if (t.params.empty()) return step;
  TORCH_CHECK(t.control.device() == t.params[0].device(), "adamw: expected control on ",
              t.params[0].device(), " like params[0], got ", t.control.device());
  TORCH_CHECK(t.control.dim() == 1, "adamw: expected control of shape [2], got ",
              t.control.sizes());
  check_floats(t.control, 2, "control", 0);
  step.options.control = t.control.const_data_ptr<float>();
  const auto statistics = t.exp_avgs[0].scalar_type();
  step.options.statistics = checked_type(t.exp_avgs[0], "exp_avgs", 0);
  TORCH_CHECK((statistics == at::kHalf) == !t.exponents.empty(), "adamw: expected ",
              statistics == at::kHalf ? "exponents with float16" : "no exponents with other",
              " statistics, got ", t.exponents.size(), " with ", statistics);
  step.slots.reserve(pieces);
  size_t next = 0;
  for (size_t i = 0; i < t.params.size(); ++i) {
    check_tensors(t, i, statistics, device);
    visit_pieces(t, i, next, [&](const Piece& piece) {
      if (piece.numel > 0) step.slots.push_back(collect_slot(t, i, piece, grid));
    });
  }
  TORCH_CHECK(next == pieces, "adamw: expected starts with a 0 for each of ", t.params.size(),
              " tensors, got more");
  return step;
}

bool lists_fit(const StepLists& t, at::ScalarType dtype, at::ScalarType statistics,
               std::optional<at::ScalarType> master, c10::Device device) {
  if (t.exponents.empty() == (statistics == at::kHalf) || t.masters.empty() == master.has_value()) {
    return false;
  }
  // Elsewhere they are raised. Here what does not fit is mended, and seldom met.
  try {
    check_lists(t);
    for (size_t i = 0; i < t.params.size(); ++i) {
      const Tensor& param = t.params[i];
      if (param.scalar_type() != dtype || param.device() != device) return false;
      if (master.has_value() && t.masters[i].scalar_type() != *master) return false;
      check_tensors(t, i, statistics, device.type());
      checked_type(t.grads[i], "grads", i);
    }
  } catch (const c10::Error&) {
    return false;
  }
  return true;
}

std::vector<GradSlot> collect_gradients(at::TensorList grads, c10::DeviceType device) {
  std::vector<GradSlot> slots;
  slots.reserve(grads.size());
  for (size_t i = 0; i < grads.size(); ++i) {
    const Tensor& grad = grads[i];
    TORCH_CHECK(grad.layout() == at::kStrided && grad.is_non_overlapping_and_dense(),
                "adamw_grad_norm: expected grads[", i, "] whose elements fill its memory, got ",
                grad.layout(), " of shape ", grad.sizes());
    TORCH_CHECK(grad.device().type() == device && grad.device() == grads[0].device(),
                "adamw_grad_norm: expected grads[", i, "] on ", grads[0].device(),
                " like grads[0], got ", grad.device());
    const GradSlot slot{grad.const_data_ptr(), grad.numel(), checked_type(grad, "grads", i)};
    if (slot.numel > 0) slots.push_back(slot);
  }
  return slots;
}

}  // namespace adamw

namespace {

using at::Tensor;

// Blocks that a thread takes at a time: at the least, and where there are many. Fewer would begin
// the streams that the processor fetches ahead too often.
constexpr int64_t kFewBlocks = 64, kManyBlocks = 1024;

// visit(begin, end) for pieces of [0, blocks), from several threads. Each takes the next piece when
// it has finished one, so that nobody waits long for a core that others keep busy.
template <typename Visit>
void for_each_piece(int64_t blocks, const Visit& visit) {
  const int64_t threads = at::get_num_threads();
  const int64_t piece = std::clamp(blocks / (4 * threads), kFewBlocks, kManyBlocks);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min(threads, (blocks + piece - 1) / piece), 1, [&](int64_t, int64_t) {
    for (int64_t begin = next.fetch_add(piece); begin < blocks; begin = next.fetch_add(piece)) {
      visit(begin, std::min(begin + piece, blocks));
    }
  });
}

// The list's pieces as one range: visit(i, begin, end) for every part of [begin, end) that lies in
// tensor i. starts: [tensors + 1] where each tensor's pieces begin.
template <typename Visit>
void visit_parts(const std::vector<int64_t>& starts, int64_t begin, int64_t end,
                 const Visit& visit) {
  auto next = std::upper_bound(starts.begin(), starts.end(), begin);
  while (begin < end) {
    const size_t i = static_cast<size_t>(next - starts.begin()) - 1;
    const int64_t stop = std::min(end, *next);
    visit(i, begin - starts[i], stop - starts[i]);
    begin = stop;
    ++next;
  }
}

void step(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs,
          at::TensorList exp_avg_sqs, at::TensorList exponents, at::TensorList masters,
          at::TensorList steps, at::IntArrayRef first_elements, const Tensor& control, double lr,
          double beta1, double beta2, double eps, double weight_decay, double maximum, int64_t seed,
          bool stochastic, c10::string_view grid, at::IntArrayRef starts) {
  const auto checked = adamw::check_and_collect({params, grads, exp_avgs, exp_avg_sqs, exponents,
                                                 masters, steps, first_elements, starts, control},
                                                {lr, beta1, beta2, eps, weight_decay, maximum},
                                                seed, stochastic, grid, at::kCPU);
  const auto& slots = checked.slots;
  if (slots.empty() || checked.options.control[1] != 0.0f) return;
  std::vector<int64_t> blocks{0};
  std::vector<adamw::Coefficients> coefficients;
  for (const auto& slot : slots) {
    TORCH_CHECK(*slot.step >= 1.0f, "adamw: expected steps from 1 on, got ", *slot.step);
    TORCH_CHECK(*slot.step < 0x1p32f, "adamw: expected steps that 32 bits count, got ", *slot.step);
    blocks.push_back(blocks.back() + adamw::blocks_of(slot.numel));
    coefficients.push_back(
        adamw::coefficients(checked.options.hyper, static_cast<uint32_t>(*slot.step)));
  }
  auto* kernel = CLIPFAST_CPU_KERNEL(adamw_blocks);
  for_each_piece(blocks.back(), [&](int64_t begin, int64_t end) {
    visit_parts(blocks, begin, end, [&](size_t i, int64_t first, int64_t last) {
      kernel(slots[i], checked.options, coefficients[i], first, last);
    });
  });
}

Tensor grad_norm(at::TensorList grads) {
  const auto slots = adamw::collect_gradients(grads, at::kCPU);
  std::vector<int64_t> starts{0};
  for (const auto& slot : slots) {
    starts.push_back(starts.back() + (slot.numel + adamw::kNormChunk - 1) / adamw::kNormChunk);
  }
  std::vector<double> sums(static_cast<size_t>(starts.back()));
  auto* kernel = CLIPFAST_CPU_KERNEL(adamw_sum_of_squares);
  at::parallel_for(0, starts.back(), 1, [&](int64_t begin, int64_t end) {
    visit_parts(starts, begin, end, [&](size_t i, int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) {
        kernel(slots[i], chunk * adamw::kNormChunk,
               std::min((chunk + 1) * adamw::kNormChunk, slots[i].numel),
               &sums[static_cast<size_t>(starts[i] + chunk)]);
      }
    });
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  Tensor norm = at::empty({}, at::TensorOptions().dtype(at::kFloat));
  *norm.mutable_data_ptr<float>() = static_cast<float>(std::sqrt(total));
  return norm;
}

}  // namespace

TORCH_LIBRARY_IMPL(clipfast, CPU, m) {
  m.impl("adamw_", &step);
  m.impl("adamw_grad_norm", &grad_norm);
}

}  // namespace clipfast
