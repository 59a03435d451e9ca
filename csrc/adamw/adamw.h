// AdamW with statistics and weights in half precision: what one step takes, as the CPU and the CUDA
// kernels read it. element.h has the mathematics; checks.h turns torch's tensors into this.
//
// One pass over each tensor, in blocks of kBlock elements in the order of memory. Bytes an element,
// read and written, with fp16 or bf16 statistics (8 more with fp32 ones):
//
//   weights            fp32, fp32 gradients    bf16 + remainder, bf16 gradients    bf16 stochastic
//   bytes              20                      18                                  14
//   torch.optim.AdamW  28                                                          14, not unbiased
//
// A block's result depends on its own elements, the step and its index alone: the same bits come
// out for any number of threads or blocks, and for any division of the elements among ranks that
// cuts at multiples of kBlock.
#pragma once

#include <cstdint>

#include "common/cpu_dispatch.h"
#include "common/scalar_type.h"
#include "element.h"

namespace clipfast::adamw {

// Where the weights of one tensor are kept, and how the new ones are rounded.
enum class WeightForm : int32_t {
  kSingle,        // fp32 parameter
  kGridHalf,      // fp32 parameter, stochastically rounded to a value that fp16 holds
  kGridBfloat16,  // likewise bf16
  kMaster,        // fp32 master; the half parameter, unless set by hand, is its nearest value
  kRemainder,     // bf16 parameter and 16 bits, together the fp32 master
  kStochastic,    // half parameter alone, stochastically rounded
};

// Whether the weights themselves are rounded stochastically.
CLIPFAST_HOST_DEVICE bool rounds_weights(WeightForm form) {
  return form == WeightForm::kStochastic || form == WeightForm::kGridHalf ||
         form == WeightForm::kGridBfloat16;
}

constexpr int64_t blocks_of(int64_t numel) { return (numel + kBlock - 1) / kBlock; }

// One tensor of the list; never empty. Every pointer is aligned to its elements, and to no more.
struct TensorSlot {
  void* param;            // [numel] param_dtype
  const void* grad;       // [numel] grad_dtype
  void* m;                // [numel] of the statistics' type
  void* v;                // [numel] likewise: the second moment in fp32, its root in half precision
  int8_t* m_exponents;    // [blocks_of(numel)], or nullptr unless the statistics are fp16
  int8_t* v_exponents;    // likewise
  void* master;           // kMaster: [numel] float; kRemainder: [numel] int16; else nullptr
  const float* step;      // [1] t of this update, from 1; on the params' device
  int64_t numel;          // > 0
  int64_t first_element;  // a multiple of kBlock
  DType param_dtype;      // float32, float16 or bfloat16, as the two below
  DType grad_dtype;
  WeightForm form;
};

// What all tensors of a call share.
struct StepOptions {
  Hyperparameters hyper;
  const float* control;  // [2] on the params' device: factor of the gradients; != 0: change nothing
  uint64_t seed;
  DType statistics;  // float32, float16 or bfloat16
  bool stochastic;   // false: kNearest in place of every random number
};

// A gradient for the norm.
struct GradSlot {
  const void* grad;  // [numel] dtype
  int64_t numel;     // > 0
  DType dtype;
};

// Elements whose squares one thread adds up, in one fixed order.
constexpr int64_t kNormChunk = 65536;

}  // namespace clipfast::adamw

namespace clipfast {

// Blocks [begin, end) of one tensor.
CLIPFAST_DECLARE_CPU_KERNEL(adamw_blocks, const adamw::TensorSlot& slot,
                            const adamw::StepOptions& options,
                            const adamw::Coefficients& coefficients, int64_t begin, int64_t end)
// sum of squares of elements [begin, end); not finite where one of them is not.
CLIPFAST_DECLARE_CPU_KERNEL(adamw_sum_of_squares, const adamw::GradSlot& slot, int64_t begin,
                            int64_t end, double* sum)

}  // namespace clipfast
