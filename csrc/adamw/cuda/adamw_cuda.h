// AdamW over many tensors on CUDA, sm_70 and newer; adamw.h has the arguments.
//
// One launch updates a list of tensors of mixed types, which travels in the kernel's argument: no
// table in device memory has to be written, and a CUDA graph holds all that it needs. What changes
// from step to step (the step counts, the gradients' factor, whether to skip) is read on the
// device, so nothing waits for the host.
#pragma once

#include "adamw/adamw.h"

namespace clipfast::adamw {

// Elements whose squares one thread block adds up. The same on every device, and so is the norm.
constexpr int64_t kNormTile = 16384;

constexpr int64_t norm_tiles(const GradSlot& slot) {
  return (slot.numel + kNormTile - 1) / kNormTile;
}

// Each works on `stream` (a cudaStream_t) of the current device and returns nullptr, or the
// launch's error in words.

// multiprocessors: the device's; results do not depend on it.
const char* launch_adamw(const TensorSlot* slots, int64_t count, const StepOptions& options,
                         int multiprocessors, void* stream);

// norm = sqrt(sum x^2) over all gradients, summed in double.
//   partial: scratch, as many as there are norm_tiles in all
//   norm: [1], out
const char* launch_adamw_grad_norm(const GradSlot* slots, int64_t count, double* partial,
                                   float* norm, void* stream);

}  // namespace clipfast::adamw
