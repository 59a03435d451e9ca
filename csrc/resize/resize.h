// Squares cut from pictures, resized with antialiasing and normalised.
//
//   out[y, x, c] = (round(sum_r sum_s v[y, r] h[x, s] image[r, s, c]) / 255 - mean[c]) / std[c]
//
// v and h are the cubic filter's weights (a = -1/2), as wide as the picture shrinks, cut off at the
// picture's borders and normalised to a sum of 1. A picture is read once and the result written
// once. What lies between is a strip of output rows, one per lane of a vector, and stays in cache.
#pragma once

#include <array>
#include <cstdint>

#include "common/cpu_dispatch.h"

namespace clipfast {

struct ResizeImage {
  const uint8_t* pixels;  // [height, width, 3]
  int64_t height, width;
  double top, left, side;  // of the square, in pixels
  float* out;              // [size, size, 3]
};

struct ResizeArgs {
  const ResizeImage* images;
  int64_t size;
  std::array<float, 3> factor, offset;  // out = rounded * factor + offset, by channel
};

// Pictures [begin, end).
CLIPFAST_DECLARE_CPU_RANGE_KERNEL(resize_images, ResizeArgs)

}  // namespace clipfast
