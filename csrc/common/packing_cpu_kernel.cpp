// Transposed, rounded and interleaved operands with ATen's vector types; compiled once per CPU
// capability.
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>

#include <algorithm>

#include "common/packing.h"

namespace clipfast::CPU_CAPABILITY {

void transpose(const Matrix& args) {
  constexpr int64_t kBlock = 16;
  const float* source = static_cast<const float*>(args.source);
  float* target = static_cast<float*>(args.target);
  for (int64_t i = 0; i < args.rows; i += kBlock) {
    const int rows = static_cast<int>(std::min(kBlock, args.rows - i));
    for (int64_t j = 0; j < args.columns; j += kBlock) {
      const int columns = static_cast<int>(std::min(kBlock, args.columns - j));
      at::vec::transpose_mxn<float>(source + i * args.source_stride + j, args.source_stride,
                                    target + j * args.target_stride + i, args.target_stride, rows,
                                    columns);
    }
  }
}

namespace {

inline void round_row(const float* source, c10::BFloat16* target, int64_t count) {
  using Floats = at::vec::Vectorized<float>;
  using Half = at::vec::Vectorized<c10::BFloat16>;
  int64_t i = 0;
  for (; i + Half::size() <= count; i += Half::size()) {
    at::vec::convert_from_float<c10::BFloat16>(Floats::loadu(source + i),
                                               Floats::loadu(source + i + Floats::size()))
        .store(target + i);
  }
  for (; i < count; ++i) target[i] = source[i];
}

}  // namespace

void transpose_to_bf16(const Matrix& args) {
  constexpr int64_t kBlock = 16;
  const float* source = static_cast<const float*>(args.source);
  auto* target = static_cast<c10::BFloat16*>(args.target);
  float block[kBlock * 2 * kBlock];
  // Two blocks side by side: a full vector of bfloat16 per row.
  for (int64_t i = 0; i < args.rows; i += 2 * kBlock) {
    const int64_t rows = std::min(2 * kBlock, args.rows - i);
    for (int64_t j = 0; j < args.columns; j += kBlock) {
      const int columns = static_cast<int>(std::min(kBlock, args.columns - j));
      for (int64_t half = 0; half < rows; half += kBlock) {
        at::vec::transpose_mxn<float>(source + (i + half) * args.source_stride + j,
                                      args.source_stride, block + half, 2 * kBlock,
                                      static_cast<int>(std::min(kBlock, rows - half)), columns);
      }
      for (int64_t k = 0; k < columns; ++k) {
        round_row(block + k * 2 * kBlock, target + (j + k) * args.target_stride + i, rows);
      }
    }
  }
}

void round_to_bf16(const Matrix& args) {
  const float* source = static_cast<const float*>(args.source);
  auto* target = static_cast<c10::BFloat16*>(args.target);
  for (int64_t i = 0; i < args.rows; ++i) {
    round_row(source + i * args.source_stride, target + i * args.target_stride, args.columns);
  }
}

void interleave_rows(const Matrix& args) {
  const auto* source = static_cast<const uint16_t*>(args.source);
  auto* target = static_cast<uint32_t*>(args.target);
  for (int64_t i = 0; i < args.rows; i += 2) {
    const uint16_t* even = source + i * args.source_stride;
    uint32_t* out = target + (i / 2) * args.target_stride;
    if (i + 1 == args.rows) {
      for (int64_t j = 0; j < args.columns; ++j) out[j] = even[j];
      continue;
    }
    const uint16_t* odd = even + args.source_stride;
    for (int64_t j = 0; j < args.columns; ++j) {
      out[j] = even[j] | static_cast<uint32_t>(odd[j]) << 16;
    }
  }
}

}  // namespace clipfast::CPU_CAPABILITY
