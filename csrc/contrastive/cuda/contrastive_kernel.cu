// The fused epilogues of the contrastive operators and the sums over their tiles; tiles.cuh says
// how they go over a chunk, contrastive_cuda.h how chunks become results.
#include "contrastive_cuda.h"
#include "tiles.cuh"

namespace clipfast {
namespace {

// Rows whose loads are issued together; the weights, which hold more besides, take half as many.
template <typename Acc>
constexpr int kRowsTogether = sizeof(Acc) == 8 ? 2 : 4;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }
__device__ __forceinline__ float not_a_number() { return __int_as_float(0x7fc00000); }

// a = max(0, bound - margin + ln G): G terms exp(S - a) do not overflow. A NaN stays one.
template <typename Acc>
__device__ __forceinline__ Acc fixed_shift(Acc bound, double log_columns) {
  constexpr double kMargin = sizeof(Acc) == 8 ? kShiftMarginDouble : kShiftMargin;
  const Acc a = bound + static_cast<Acc>(log_columns - kMargin);
  return a < 0 ? Acc(0) : a;
}

template <typename Acc>
__device__ __forceinline__ bool is_sound(Acc sum) {
  return sum >= Acc(kSmallestSum) && sum <= Limits<Acc>::kMax;
}

// Maxima of nothing are -inf; zero in their place keeps differences defined.
template <typename Acc>
__device__ __forceinline__ Acc finite_max(Acc largest) {
  return largest == -infinity() ? Acc(0) : largest;
}

// Stands for sum exp(max).
template <typename Acc>
struct SumPair {
  Acc max;
  Acc sum;
};

template <typename Acc>
__device__ __forceinline__ SumPair<Acc> fold(const SumPair<Acc>& a, const SumPair<Acc>& b) {
  const Acc largest = Largest::apply(a.max, b.max);
  const Acc base = finite_max(largest);
  return {largest, a.sum * natural_exp(a.max - base) + b.sum * natural_exp(b.max - base)};
}

// Combines a value a column over the block's warps; thread t returns column t of the tile.
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

// row_partial[tile, i] = sum_j exp(S_ij - a) over the tile's columns; column_partial likewise.
template <typename Acc, typename Kept>
__global__ void __launch_bounds__(kBlockThreads)
    statistics_kernel(const ContrastiveChunk chunk, const ContrastiveSums sums, bool is_packed) {
  constexpr bool kKeep = !std::is_same_v<Kept, NotKept>;
  __shared__ Acc shared[kWarps][kTileColumns];
  const Place place;
  const ColumnVector<Acc> factor(chunk.column_factor, place, chunk.columns);
  const Acc scale = element<Acc>(chunk.scale, 0) * Acc(kLog2e);
  const Acc bound = element<Acc>(chunk.bound, 0);
  const Acc shift = fixed_shift(bound, chunk.log_columns) * Acc(kLog2e);
  Acc kept_factor = Acc(1 / kLog2e);
  if constexpr (std::is_same_v<Kept, int16_t>) kept_factor *= kKeptSteps / bound;
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
            const Acc e = counts(chunk, row, first + c) ? power_of_two(logit - shift) : Acc(0);
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

__device__ __forceinline__ int64_t row_tiles(const ContrastiveChunk& chunk) {
  return (chunk.rows + kTileRows - 1) / kTileRows;
}
__device__ __forceinline__ int64_t column_tiles(const ContrastiveChunk& chunk) {
  return (chunk.columns + kTileColumns - 1) / kTileColumns;
}

constexpr int kReducers = 8;  // threads that share a row or column
constexpr int kReduced = kBlockThreads / kReducers;

// chunk_sum = the sums of the partials in a fixed order, rows first, then columns; flag = any of
// them is useless.
template <typename Acc>
__global__ void __launch_bounds__(kBlockThreads)
    reduce_kernel(const ContrastiveChunk chunk, const ContrastiveSums sums, int row_blocks) {
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
  static_cast<Acc*>(sums.chunk_sum)[is_rows ? i : chunk.rows + i] = total;
  if (!is_sound(total)) *sums.flag = 1;
}

// The partials again, as sums relative to the largest logit of each row and column of the tile.
template <typename Acc>
__global__ void __launch_bounds__(kBlockThreads)
    exact_kernel(const ContrastiveChunk chunk, const ContrastiveSums sums) {
  __shared__ Acc shared[kWarps][kTileColumns];
  if (*sums.flag == 0) return;
  const Place place;
  const ColumnVector<Acc> factor(chunk.column_factor, place, chunk.columns);
  const Acc scale = element<Acc>(chunk.scale, 0);
  const int64_t row_offset = blockIdx.x * chunk.rows;
  const int64_t column_offset = blockIdx.y * chunk.columns + blockIdx.x * kTileColumns;
  const bool is_column = blockIdx.x * kTileColumns + threadIdx.x < chunk.columns;
  Acc* row_sum = static_cast<Acc*>(sums.row_partial) + row_offset;
  Acc* row_max = row_sum + column_tiles(chunk) * chunk.rows;
  Acc* column_sum = static_cast<Acc*>(sums.column_partial) + column_offset;
  Acc* column_max = column_sum + row_tiles(chunk) * chunk.columns;
  const auto for_each_logit = [&](int64_t row, const auto& packs, const auto& use) {
    const Acc row_scale = scale * element<Acc>(chunk.row_factor, row);
#pragma unroll
    for (int k = 0; k < kGroups; ++k) {
#pragma unroll
      for (int c = 0; c < kPack; ++c) {
        const Acc logit = packs[k].value[c] * row_scale * factor.value[k][c];
        use(k, c, counts(chunk, row, place.column(k) + c) ? logit : Acc(-infinity()));
      }
    }
  };

  Acc largest[kGroups][kPack];
#pragma unroll
  for (int k = 0; k < kGroups; ++k) {
#pragma unroll
    for (int c = 0; c < kPack; ++c) largest[k][c] = -infinity();
  }
  const Acc* products = static_cast<const Acc*>(chunk.products);
  for_each_row<kRowsTogether<Acc>>(products, chunk.products_stride, true, chunk, place,
                                   [&](int64_t row, const Pack<Acc, kPack>(&packs)[kGroups]) {
                                     if (row >= chunk.rows) return;
                                     Acc m = -infinity();
                                     for_each_logit(row, packs, [&](int k, int c, Acc logit) {
                                       m = Largest::apply(logit, m);
                                       largest[k][c] = Largest::apply(logit, largest[k][c]);
                                     });
                                     m = row_reduce<kWarp, Largest, Acc>(m, nullptr);
                                     Acc total = 0;
                                     for_each_logit(row, packs, [&](int, int, Acc logit) {
                                       total += natural_exp(logit - finite_max(m));
                                     });
                                     total = row_reduce<kWarp, Sum, Acc>(total, nullptr);
                                     if (threadIdx.x % kWarp == 0)
                                       row_max[row] = m, row_sum[row] = total;
                                   });

  const Acc tile_max = column_reduce<Largest>(largest, shared);
  if (is_column) column_max[threadIdx.x] = tile_max;
  // Handed to the threads that hold the column's elements.
  shared[0][threadIdx.x] = finite_max(tile_max);
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kGroups; ++k) {
#pragma unroll
    for (int c = 0; c < kPack; ++c) {
      largest[k][c] = shared[0][k * kPack * kWarp + threadIdx.x % kWarp * kPack + c];
    }
  }
  __syncthreads();

  Acc column_total[kGroups][kPack] = {};
  for_each_row<kRowsTogether<Acc>>(products, chunk.products_stride, true, chunk, place,
                                   [&](int64_t row, const Pack<Acc, kPack>(&packs)[kGroups]) {
                                     if (row >= chunk.rows) return;
                                     for_each_logit(row, packs, [&](int k, int c, Acc logit) {
                                       column_total[k][c] += natural_exp(logit - largest[k][c]);
                                     });
                                   });
  const Acc total = column_reduce<Sum>(column_total, shared);
  if (is_column) column_sum[threadIdx.x] = total;
}

// Adds the chunk's pairs to the running ones.
template <typename Acc>
__global__ void __launch_bounds__(kBlockThreads)
    fold_kernel(const ContrastiveChunk chunk, const ContrastiveSums sums) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (item >= chunk.rows + chunk.columns) return;
  const bool is_rows = item < chunk.rows;
  const int64_t i = is_rows ? item : item - chunk.rows;
  SumPair<Acc> pair = {fixed_shift(element<Acc>(chunk.bound, 0), chunk.log_columns),
                       element<Acc>(sums.chunk_sum, item)};
  if (*sums.flag != 0) {
    const int64_t size = is_rows ? chunk.rows : chunk.columns;
    const int64_t count = is_rows ? column_tiles(chunk) : row_tiles(chunk);
    const void* partial = is_rows ? sums.row_partial : sums.column_partial;
    pair = {-infinity(), 0};
    for (int64_t t = 0; t < count; ++t) {
      pair = fold(pair, SumPair<Acc>{element<Acc>(partial, (count + t) * size + i),
                                     element<Acc>(partial, t * size + i)});
    }
  }
  Acc* running_max = static_cast<Acc*>(is_rows ? sums.row_max : sums.column_max) + i;
  Acc* running_sum = static_cast<Acc*>(is_rows ? sums.row_sum : sums.column_sum) + i;
  if (!(is_rows ? sums.is_first_column : sums.is_first_row)) {
    pair = fold(SumPair<Acc>{*running_max, *running_sum}, pair);
  }
  *running_max = pair.max;
  *running_sum = pair.sum;
}

// First pass: flag = some result cannot be expressed by the shift. Second: express them, or leave
// the shift out.
template <typename Acc, bool Second>
__global__ void __launch_bounds__(kBlockThreads) shift_kernel(const ContrastiveShift args) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (item >= args.rows + args.columns) return;
  const bool is_rows = item < args.rows;
  const int64_t i = is_rows ? item : item - args.rows;
  Acc& largest = static_cast<Acc*>(is_rows ? args.row_max : args.column_max)[i];
  Acc& sum = static_cast<Acc*>(is_rows ? args.row_sum : args.column_sum)[i];
  const Acc shift = fixed_shift(element<Acc>(args.bound, 0), args.log_columns);
  const Acc shifted = largest == shift ? sum : sum * natural_exp(largest - shift);
  if constexpr (!Second) {
    if (!is_sound(shifted)) *args.flag = 1;
  } else {
    const bool is_fixed = *args.flag == 0;
    largest = is_fixed ? shift : finite_max(largest);
    if (is_fixed) sum = shifted;
    if (item == 0) *static_cast<Acc*>(args.shift) = is_fixed ? shift : Acc(not_a_number());
  }
}

// exp(S - row_lse) + exp(S - column_lse) of one pair (row_value, column_value), from S log2(e).
template <bool Fixed, typename Acc>
__device__ __forceinline__ Acc softmax_sum(Acc logit, Acc shift, Acc row_value, Acc column_value) {
  if constexpr (Fixed) {
    return power_of_two(logit - shift) * (row_value + column_value);
  } else {
    return power_of_two(logit - row_value) + power_of_two(logit - column_value);
  }
}

// With a shift a, the factor exp(a - lse) that exp(S - a) lacks; else lse in units of ln 2.
template <bool Fixed, typename Acc>
__device__ __forceinline__ Acc softmax_value(Acc lse, Acc shift) {
  return Fixed ? natural_exp(shift - lse) : lse * Acc(kLog2e);
}

template <bool Fixed, typename Acc, typename Q, typename T, bool IsProducts>
__device__ __forceinline__ void write_weights(const ContrastiveChunk& chunk,
                                              const ContrastiveWeights& args, bool is_packed) {
  const Place place;
  const ColumnVector<Acc> factor(chunk.column_factor, place, chunk.columns);
  ColumnVector<Acc> column(args.column_lse, place, chunk.columns);
  const Acc shift = element<Acc>(args.shift, 0);
  const Acc shift2 = shift * Acc(kLog2e);
#pragma unroll
  for (int k = 0; k < kGroups; ++k) {
#pragma unroll
    for (int c = 0; c < kPack; ++c) {
      column.value[k][c] = softmax_value<Fixed>(column.value[k][c], shift);
    }
  }
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
        const Acc row_value = softmax_value<Fixed>(element<Acc>(args.row_lse, row), shift);
#pragma unroll
        for (int k = 0; k < kGroups; ++k) {
          const int64_t first = place.column(k);
          Pack<Q, kPack> out;
#pragma unroll
          for (int c = 0; c < kPack; ++c) {
            Acc logit = static_cast<Acc>(packs[k].value[c]) * row_scale;
            if constexpr (IsProducts) logit *= factor.value[k][c];
            const Acc p = softmax_sum<Fixed>(logit, shift2, row_value, column.value[k][c]);
            const Acc q = p * (row_factor * kWeightScale) * factor.value[k][c];
            out.value[c] = narrow<Q>(counts(chunk, row, first + c) ? q : Acc(0));
          }
          store_pack(static_cast<Q*>(args.weights) + row * args.weights_stride, first,
                     chunk.columns, true, out);
        }
      });
}

// Q from the products (T = Acc), or from kept logits. The bound on blocks: without it ptxas spills
// to reach an occupancy that a memory-bound kernel does not need.
template <typename Acc, typename Q, typename T, bool IsProducts>
__global__ void __launch_bounds__(kBlockThreads, sizeof(Acc) == 8 ? 1 : 2)
    weights_kernel(const ContrastiveChunk chunk, const ContrastiveWeights args, bool is_packed) {
  const Acc shift = element<Acc>(args.shift, 0);
  if (shift == shift) {
    write_weights<true, Acc, Q, T, IsProducts>(chunk, args, is_packed);
  } else {
    write_weights<false, Acc, Q, T, IsProducts>(chunk, args, is_packed);
  }
}

unsigned blocks_over(int64_t items) { return static_cast<unsigned>(tiles(items, kBlockThreads)); }

template <typename Acc, typename Kept>
void run_statistics(const ContrastiveChunk& chunk, const ContrastiveSums& sums,
                    cudaStream_t stream) {
  const bool is_packed = std::is_same_v<Kept, NotKept> || is_kept_packed<Kept>(chunk);
  const int64_t row_blocks = tiles(chunk.rows, kReduced);
  const int64_t blocks = row_blocks + tiles(chunk.columns, kReduced);
  statistics_kernel<Acc, Kept>
      <<<tile_grid(chunk), kBlockThreads, 0, stream>>>(chunk, sums, is_packed);
  reduce_kernel<Acc><<<static_cast<unsigned>(blocks), kBlockThreads, 0, stream>>>(
      chunk, sums, static_cast<int>(row_blocks));
  exact_kernel<Acc><<<tile_grid(chunk), kBlockThreads, 0, stream>>>(chunk, sums);
  fold_kernel<Acc>
      <<<blocks_over(chunk.rows + chunk.columns), kBlockThreads, 0, stream>>>(chunk, sums);
}

template <typename Acc>
void run_shift(const ContrastiveShift& args, cudaStream_t stream) {
  const unsigned blocks = blocks_over(args.rows + args.columns);
  shift_kernel<Acc, false><<<blocks, kBlockThreads, 0, stream>>>(args);
  shift_kernel<Acc, true><<<blocks, kBlockThreads, 0, stream>>>(args);
}

template <typename Acc, typename Q, typename Kept>
void run_weights(const ContrastiveChunk& chunk, const ContrastiveWeights& args,
                 cudaStream_t stream) {
  if (chunk.products != nullptr) {
    weights_kernel<Acc, Q, Acc, true>
        <<<tile_grid(chunk), kBlockThreads, 0, stream>>>(chunk, args, true);
  } else {
    weights_kernel<Acc, Q, Kept, false>
        <<<tile_grid(chunk), kBlockThreads, 0, stream>>>(chunk, args, is_kept_packed<Kept>(chunk));
  }
}

}  // namespace

const char* launch_statistics(const ContrastiveChunk& chunk, const ContrastiveSums& sums,
                              void* stream_in) {
  const auto stream = static_cast<cudaStream_t>(stream_in);
  const bool keep = chunk.kept != nullptr;
  if (chunk.is_double) {
    keep ? run_statistics<double, double>(chunk, sums, stream)
         : run_statistics<double, NotKept>(chunk, sums, stream);
  } else if (!keep) {
    run_statistics<float, NotKept>(chunk, sums, stream);
  } else if (chunk.is_kept_short) {
    run_statistics<float, int16_t>(chunk, sums, stream);
  } else {
    run_statistics<float, float>(chunk, sums, stream);
  }
  return launch_error();
}

const char* launch_shift(const ContrastiveShift& args, void* stream_in) {
  const auto stream = static_cast<cudaStream_t>(stream_in);
  args.is_double ? run_shift<double>(args, stream) : run_shift<float>(args, stream);
  return launch_error();
}

const char* launch_weights(const ContrastiveChunk& chunk, const ContrastiveWeights& args,
                           void* stream_in) {
  const auto stream = static_cast<cudaStream_t>(stream_in);
  switch (args.weights_dtype) {
    case DType::kFloat64:
      run_weights<double, double, double>(chunk, args, stream);
      break;
    case DType::kFloat32:
      run_weights<float, float, float>(chunk, args, stream);
      break;
    case DType::kFloat16:
      run_weights<float, __half, int16_t>(chunk, args, stream);
      break;
    case DType::kBFloat16:
      run_weights<float, __nv_bfloat16, int16_t>(chunk, args, stream);
      break;
  }
  return launch_error();
}

}  // namespace clipfast
