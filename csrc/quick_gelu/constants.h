// Numbers of QuickGELU that C++, Triton and Python must agree on. A test compares them.
#pragma once

namespace clipfast {

// Of the sigmoid's argument: x sigmoid(1.702 x) lies within 0.021 of GELU.
constexpr double kSlope = 1.702;

}  // namespace clipfast
