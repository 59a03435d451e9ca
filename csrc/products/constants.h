// Numbers of the products that C++ and Python must agree on. A test compares them.
#pragma once

#include <cstdint>

namespace clipfast {

// The largest numbers of rows of the first two row classes: packing a weight is most of the work,
// a part of it, nothing.
constexpr int64_t kFewRows = 4;
constexpr int64_t kSomeRows = 64;

}  // namespace clipfast
