// How a chunk is read: in tiles of 64 x 256, one block each.
//
// All that read it are bound by memory. Each of a block's 8 warps takes 8 rows of the tile, each of
// its lanes 4 adjacent columns twice, so a warp reads 512 adjacent bytes per instruction, with
// several such loads under way per thread. Exponentials are powers of two: the factor log2(e) is
// part of the scale.
#pragma once

#include "chunk.h"
#include "common/cuda_rows.cuh"

namespace clipfast {
namespace {

constexpr int kWarps = kBlockThreads / kWarp;
constexpr int kRowsPerWarp = static_cast<int>(kTileRows) / kWarps;
constexpr int kPack = 4;
constexpr int kGroups = static_cast<int>(kTileColumns) / (kPack * kWarp);
static_assert(kTileColumns == kBlockThreads, "a thread adds up one column of the tile");

__device__ __forceinline__ float power_of_two(float v) { return exp2f(v); }
__device__ __forceinline__ double power_of_two(double v) { return exp2(v); }

__device__ __forceinline__ float natural_exp(float v) {
  return exp2f(v * static_cast<float>(kLog2e));
}
__device__ __forceinline__ double natural_exp(double v) { return exp(v); }

// The thread's place in the chunk: rows first_row + [0, kRowsPerWarp), and in group k the columns
// first_column + k * kPack * kWarp + [0, kPack).
struct Place {
  int64_t first_row;
  int64_t first_column;

  __device__ __forceinline__ Place()
      : first_row(blockIdx.y * kTileRows + threadIdx.x / kWarp * kRowsPerWarp),
        first_column(blockIdx.x * kTileColumns + threadIdx.x % kWarp * kPack) {}

  __device__ __forceinline__ int64_t column(int group) const {
    return first_column + group * (kPack * kWarp);
  }
};

// Of a vector that the running kernel only reads, so that loads need not wait for earlier stores.
template <typename Acc>
__device__ __forceinline__ Acc element(const void* vector, int64_t i) {
  return __ldg(static_cast<const Acc*>(vector) + i);
}

// One value per column of the thread, zero beyond the chunk.
template <typename Acc>
struct ColumnVector {
  Acc value[kGroups][kPack];

  // For a rule whose columns have no value of their own.
  __device__ __forceinline__ ColumnVector() : value{} {}

  __device__ __forceinline__ ColumnVector(const void* vector, const Place& place, int64_t columns) {
#pragma unroll
    for (int k = 0; k < kGroups; ++k) {
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        const int64_t j = place.column(k) + c;
        value[k][c] = j < columns ? element<Acc>(vector, j) : Acc(0);
      }
    }
  }
};

// Calls visit(row, packs) with the thread's elements of each of its rows, loaded Together rows at a
// time. Rows and packs beyond the chunk are zero; a pack that straddles its last column is read
// whole, since rows of products are padded. `is_packed` is false for kept logits of odd width.
template <int Together, typename T, typename Visit>
__device__ __forceinline__ void for_each_row(const T* start, int64_t stride, bool is_packed,
                                             const Chunk& chunk, const Place& place,
                                             const Visit& visit) {
  for (int first = 0; first < kRowsPerWarp; first += Together) {
    Pack<T, kPack> packs[Together][kGroups] = {};
#pragma unroll
    for (int r = 0; r < Together; ++r) {
      const int64_t row = place.first_row + first + r;
      if (row >= chunk.rows) break;
      const T* source = start + row * stride;
#pragma unroll
      for (int k = 0; k < kGroups; ++k) {
        const int64_t j = place.column(k);
        if (is_packed && j < chunk.columns) {
          packs[r][k] = *reinterpret_cast<const Pack<T, kPack>*>(source + j);
        } else {
#pragma unroll
          for (int c = 0; c < kPack; ++c) {
            if (j + c < chunk.columns) packs[r][k].value[c] = source[j + c];
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < Together; ++r) visit(place.first_row + first + r, packs[r]);
  }
}

// Whether (row, j) adds to sums: inside the chunk, and not a pair.
__device__ __forceinline__ bool counts(const Chunk& chunk, int64_t row, int64_t j) {
  return j < chunk.columns && j != chunk.pair + row;
}

template <typename T>
__device__ __forceinline__ void store_pack(T* row, int64_t j, int64_t columns, bool is_packed,
                                           const Pack<T, kPack>& pack) {
  if (is_packed && j + kPack <= columns) {
    *reinterpret_cast<Pack<T, kPack>*>(row + j) = pack;
    return;
  }
#pragma unroll
  for (int c = 0; c < kPack; ++c) {
    if (j + c < columns) row[j + c] = pack.value[c];
  }
}

dim3 tile_grid(const Chunk& chunk) {
  return dim3(static_cast<unsigned>(tiles(chunk.columns, kTileColumns)),
              static_cast<unsigned>(tiles(chunk.rows, kTileRows)));
}

template <typename T>
bool is_kept_packed(const Chunk& chunk) {
  return in_packs<T, kPack>(chunk.kept, chunk.kept_stride, chunk.columns);
}

}  // namespace
}  // namespace clipfast
