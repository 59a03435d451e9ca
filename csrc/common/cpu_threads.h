// How CPU kernels over a range share it among threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace clipfast {

// Rows a CPU thread takes at the least: about 16,384 elements, below which waking a thread costs
// more than the work.
inline int64_t row_grain(int64_t dim) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, dim));
}

// Calls kernel(args, begin, end) in threads until [0, count) is done.
template <typename Kernel, typename Args>
void run_range(Kernel* kernel, const Args& args, int64_t count, int64_t grain) {
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

}  // namespace clipfast
