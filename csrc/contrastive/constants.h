// Numbers of the contrastive loss that C++, CUDA and Triton must agree on. A test compares them.
#pragma once

#include <cstdint>

namespace clipfast {

// Logits are held in units of ln 2: a power of two costs less than exp.
constexpr double kLog2e = 1.4426950408889634;
// Natural units that the shift leaves between the largest sum and overflow: at 88.7 in float32, at
// 709.7 in float64.
constexpr double kShiftMargin = 87.0;
constexpr double kShiftMarginDouble = 700.0;
// A sum below this may have lost terms to underflow. True maxima then take the shift's place.
constexpr double kSmallestSum = 0x1p-100;
// A kept logit of 16 bits counts steps of bound / 32767, the largest int16.
constexpr int32_t kKeptSteps = 32767;
// fp16 weights are stored times 2^14: |P| <= 2 stays in range and P down to 2^-38 stays nonzero.
constexpr double kHalfWeightScale = 0x1p14;

}  // namespace clipfast
