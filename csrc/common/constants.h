// Numbers of the row operators that C++, CUDA and Triton must agree on. A test compares them.
#pragma once

namespace clipfast {

// A sum of squares below this has lost squares that rounded to zero. The row is then scaled and
// summed again. The squares lost are below 2^-126 (float64: 2^-1022), far under a last bit of this.
constexpr float kSmallestSquares = 0x1p-100f;
constexpr double kSmallestSquaresDouble = 0x1p-900;

}  // namespace clipfast
