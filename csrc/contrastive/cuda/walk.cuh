// The walks over a chunk. What is done with a logit is a rule's part; softmax_rule.cuh has two.
//
// A rule for sums is a struct that a kernel takes by value, with
//   form<Acc>()       what turns a logit, in units of ln 2, into the e that is added up
//   note(total)       sees each row's and column's sum over the chunk
// and one for weights with
//   visit<Acc>(use)   calls use(form) once. form(logit, row value, column value) is P, from
//                     form.row(i) and form.columns(place, columns): values that P needs per row and
//                     per column, made once per thread
//
// Sums. A tile of 64 x 256 elements writes one partial sum per row and one per column; a second
// kernel adds them in a fixed order. There are no atomics, so results are the same bits on every
// run. Pairs are left out of sums and have weight zero.
#pragma once

#include "tiles.cuh"

namespace clipfast {
namespace {

// Rows whose loads are issued together; the weights, which hold more besides, take half as many.
template <typename Acc>
constexpr int kRowsTogether = sizeof(Acc) == 8 ? 2 : 4;

// Combines one value per column over the block's warps; thread t returns column t of the tile.
template <typename Op, typename Acc>
__device__ __forceinline__ Acc column_reduce(const Acc (&value)[kGroups][kPack],
                                             Acc (&shared)[kWarps][kTileColumns]) {
#pragma unroll
  for (int k = 0; k < kGroups; ++k) {
#pragma unroll
    for (int c = 0; c < kPack; ++c) {
      const int j = k * kPack * kWarp + threadIdx.x % kWarp * kPack + c;
      shared[threadIdx.x / kWarp][j] = value[k][c];
    }
  }
  __syncthreads();
  Acc v = shared[0][threadIdx.x];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) v = Op::apply(v, shared[w][threadIdx.x]);
  __syncthreads();
  return v;
}

struct NotKept {};

// S log2(e) to what is kept of it.
__device__ __forceinline__ void keep_value(int16_t& kept, float logit, float factor) {
  const int steps = __float2int_rn(logit * factor);
  kept = static_cast<int16_t>(steps > kKeptSteps    ? kKeptSteps
                              : steps < -kKeptSteps ? -kKeptSteps
                                                    : steps);
}
template <typename Acc>
__device__ __forceinline__ void keep_value(Acc& kept, Acc logit, Acc factor) {
  kept = logit * factor;
}

// row_partial[tile, i] = sum_j e_ij over the tile's columns; column_partial likewise. Writes what
// is kept of the logits.
template <typename Acc, typename Kept, typename Rule>
__global__ void __launch_bounds__(kBlockThreads)
    sums_kernel(const Chunk chunk, const ChunkSums sums, const Rule rule, bool is_packed) {
  constexpr bool kKeep = !std::is_same_v<Kept, NotKept>;
  __shared__ Acc shared[kWarps][kTileColumns];
  const Place place;
  const ColumnVector<Acc> factor(chunk.column_factor, place, chunk.columns);
  const Acc scale = element<Acc>(chunk.scale, 0) * Acc(kLog2e);
  const auto form = rule.template form<Acc>();
  Acc kept_factor = Acc(1 / kLog2e);
  if constexpr (std::is_same_v<Kept, int16_t>)
    kept_factor *= kKeptSteps / element<Acc>(chunk.bound, 0);
  Acc* row_partial = static_cast<Acc*>(sums.row_partial) + blockIdx.x * chunk.rows;
  Acc* column_partial = static_cast<Acc*>(sums.column_partial) + blockIdx.y * chunk.columns;

  Acc column_total[kGroups][kPack] = {};
  for_each_row<kRowsTogether<Acc>>(
      static_cast<const Acc*>(chunk.products), chunk.products_stride, true, chunk, place,
      [&](int64_t row, const Pack<Acc, kPack>(&packs)[kGroups]) {
        // The same for all of a warp.
        if (row >= chunk.rows) return;
        const Acc row_scale = scale * element<Acc>(chunk.row_factor, row);
        Acc row_total = 0;
#pragma unroll
        for (int k = 0; k < kGroups; ++k) {
          const int64_t first = place.column(k);
          [[maybe_unused]] Pack<std::conditional_t<kKeep, Kept, Acc>, kPack> kept;
#pragma unroll
          for (int c = 0; c < kPack; ++c) {
            const Acc logit = packs[k].value[c] * row_scale * factor.value[k][c];
            const Acc e = counts(chunk, row, first + c) ? form(logit) : Acc(0);
            row_total += e;
            column_total[k][c] += e;
            if constexpr (kKeep) keep_value(kept.value[c], logit, kept_factor);
          }
          if constexpr (kKeep) {
            store_pack(static_cast<Kept*>(chunk.kept) + row * chunk.kept_stride, first,
                       chunk.columns, is_packed, kept);
          }
        }
        row_total = row_reduce<kWarp, Sum, Acc>(row_total, nullptr);
        if (threadIdx.x % kWarp == 0) row_partial[row] = row_total;
      });

  const Acc total = column_reduce<Sum>(column_total, shared);
  const int64_t j = blockIdx.x * kTileColumns + threadIdx.x;
  if (j < chunk.columns) column_partial[j] = total;
}

__device__ __forceinline__ int64_t row_tiles(const Chunk& chunk) {
  return (chunk.rows + kTileRows - 1) / kTileRows;
}
__device__ __forceinline__ int64_t column_tiles(const Chunk& chunk) {
  return (chunk.columns + kTileColumns - 1) / kTileColumns;
}

constexpr int kReducers = 8;  // threads that share a row or column
constexpr int kReduced = kBlockThreads / kReducers;

// total = the sums of the partials in a fixed order, rows first, then columns. The rule sees each.
template <typename Acc, typename Rule>
__global__ void __launch_bounds__(kBlockThreads)
    reduce_kernel(const Chunk chunk, const ChunkSums sums, const Rule rule, int row_blocks) {
  __shared__ Acc shared[kReducers][kReduced];
  const bool is_rows = blockIdx.x < row_blocks;
  const int64_t block = is_rows ? blockIdx.x : blockIdx.x - row_blocks;
  const int64_t size = is_rows ? chunk.rows : chunk.columns;
  const int64_t count = is_rows ? column_tiles(chunk) : row_tiles(chunk);
  const Acc* partial = static_cast<const Acc*>(is_rows ? sums.row_partial : sums.column_partial);
  const int item = threadIdx.x % kReduced;
  const int reducer = threadIdx.x / kReduced;
  const int64_t i = block * kReduced + item;
  Acc total = 0;
  if (i < size) {
#pragma unroll 4
    for (int64_t t = reducer; t < count; t += kReducers) total += partial[t * size + i];
  }
  shared[reducer][item] = total;
  __syncthreads();
  if (reducer > 0 || i >= size) return;
  for (int r = 1; r < kReducers; ++r) total += shared[r][item];
  static_cast<Acc*>(sums.total)[is_rows ? i : chunk.rows + i] = total;
  rule.note(total);
}

template <typename Acc, typename Q, typename T, bool IsProducts, typename Form>
__device__ __forceinline__ void write_weights(const Chunk& chunk, const Form& form,
                                              const MutableRows& weights, bool is_packed) {
  const Place place;
  const ColumnVector<Acc> factor(chunk.column_factor, place, chunk.columns);
  const ColumnVector<Acc> column = form.columns(place, chunk.columns);
  Acc scale = Acc(kLog2e);
  if constexpr (IsProducts) scale *= element<Acc>(chunk.scale, 0);
  if constexpr (std::is_same_v<T, int16_t>) scale *= element<Acc>(chunk.bound, 0) / kKeptSteps;
  constexpr Acc kWeightScale = std::is_same_v<Q, __half> ? kHalfWeightScale : 1;
  const T* source = static_cast<const T*>(IsProducts ? chunk.products : chunk.kept);
  const int64_t stride = IsProducts ? chunk.products_stride : chunk.kept_stride;

  for_each_row<kRowsTogether<Acc> / 2>(
      source, stride, IsProducts || is_packed, chunk, place,
      [&](int64_t row, const Pack<T, kPack>(&packs)[kGroups]) {
        if (row >= chunk.rows) return;
        const Acc row_factor = element<Acc>(chunk.row_factor, row);
        const Acc row_scale = IsProducts ? scale * row_factor : scale;
        const Acc row_value = form.row(row);
#pragma unroll
        for (int k = 0; k < kGroups; ++k) {
          const int64_t first = place.column(k);
          Pack<Q, kPack> out;
#pragma unroll
          for (int c = 0; c < kPack; ++c) {
            Acc logit = static_cast<Acc>(packs[k].value[c]) * row_scale;
            if constexpr (IsProducts) logit *= factor.value[k][c];
            const Acc p = form(logit, row_value, column.value[k][c]);
            const Acc q = p * (row_factor * kWeightScale) * factor.value[k][c];
            out.value[c] = narrow<Q>(counts(chunk, row, first + c) ? q : Acc(0));
          }
          store_pack(weights.row<Q>(row), first, chunk.columns, true, out);
        }
      });
}

// Q from the products (T = Acc), or from kept logits. The bound on blocks: without it ptxas spills
// to reach an occupancy that a memory-bound kernel does not need.
template <typename Acc, typename Q, typename T, bool IsProducts, typename Rule>
__global__ void __launch_bounds__(kBlockThreads, sizeof(Acc) == 8 ? 1 : 2)
    weights_kernel(const Chunk chunk, const MutableRows weights, const Rule rule, bool is_packed) {
  rule.template visit<Acc>([&](const auto& form) {
    write_weights<Acc, Q, T, IsProducts>(chunk, form, weights, is_packed);
  });
}

template <typename Acc, typename Kept, typename Rule>
void launch_sums(const Chunk& chunk, const ChunkSums& sums, const Rule& rule, cudaStream_t stream) {
  const bool is_packed = std::is_same_v<Kept, NotKept> || is_kept_packed<Kept>(chunk);
  const int64_t row_blocks = tiles(chunk.rows, kReduced);
  const int64_t blocks = row_blocks + tiles(chunk.columns, kReduced);
  sums_kernel<Acc, Kept, Rule>
      <<<tile_grid(chunk), kBlockThreads, 0, stream>>>(chunk, sums, rule, is_packed);
  reduce_kernel<Acc, Rule><<<static_cast<unsigned>(blocks), kBlockThreads, 0, stream>>>(
      chunk, sums, rule, static_cast<int>(row_blocks));
}

// The sums of a chunk, and its kept logits where it has room for them.
template <typename Rule>
void run_sums(const Chunk& chunk, const ChunkSums& sums, const Rule& rule, cudaStream_t stream) {
  const bool keep = chunk.kept != nullptr;
  if (chunk.is_double) {
    keep ? launch_sums<double, double>(chunk, sums, rule, stream)
         : launch_sums<double, NotKept>(chunk, sums, rule, stream);
  } else if (!keep) {
    launch_sums<float, NotKept>(chunk, sums, rule, stream);
  } else if (chunk.is_kept_short) {
    launch_sums<float, int16_t>(chunk, sums, rule, stream);
  } else {
    launch_sums<float, float>(chunk, sums, rule, stream);
  }
}

template <typename Acc, typename Q, typename Kept, typename Rule>
void launch_weights(const Chunk& chunk, const MutableRows& weights, const Rule& rule,
                    cudaStream_t stream) {
  if (chunk.products != nullptr) {
    weights_kernel<Acc, Q, Acc, true, Rule>
        <<<tile_grid(chunk), kBlockThreads, 0, stream>>>(chunk, weights, rule, true);
  } else {
    weights_kernel<Acc, Q, Kept, false, Rule><<<tile_grid(chunk), kBlockThreads, 0, stream>>>(
        chunk, weights, rule, is_kept_packed<Kept>(chunk));
  }
}

// Q of a chunk.
template <typename Rule>
void run_weights(const Chunk& chunk, const MutableRows& weights, const Rule& rule,
                 cudaStream_t stream) {
  switch (weights.dtype) {
    case DType::kFloat64:
      return launch_weights<double, double, double>(chunk, weights, rule, stream);
    case DType::kFloat32:
      return launch_weights<float, float, float>(chunk, weights, rule, stream);
    case DType::kFloat16:
      return launch_weights<float, __half, int16_t>(chunk, weights, rule, stream);
    case DType::kBFloat16:
      return launch_weights<float, __nv_bfloat16, int16_t>(chunk, weights, rule, stream);
  }
}

}  // namespace
}  // namespace clipfast
