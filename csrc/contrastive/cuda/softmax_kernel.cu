// Softmax over chunks of logits: pairs of maxima and sums, and the launches. walk.cuh reads a chunk
// with softmax_rule.cuh's rules; softmax.h says how chunks become results.
#include "softmax_rule.cuh"
#include "walk.cuh"

namespace clipfast {
namespace {

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }
__device__ __forceinline__ float not_a_number() { return __int_as_float(0x7fc00000); }

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

// The partials again, as sums relative to the largest logit of each row and column of the tile.
template <typename Acc>
__global__ void __launch_bounds__(kBlockThreads)
    exact_kernel(const Chunk chunk, const SoftmaxSums args) {
  __shared__ Acc shared[kWarps][kTileColumns];
  if (*args.flag == 0) return;
  const Place place;
  const ColumnVector<Acc> factor(chunk.column_factor, place, chunk.columns);
  const Acc scale = element<Acc>(chunk.scale, 0);
  const int64_t row_offset = blockIdx.x * chunk.rows;
  const int64_t column_offset = blockIdx.y * chunk.columns + blockIdx.x * kTileColumns;
  const bool is_column = blockIdx.x * kTileColumns + threadIdx.x < chunk.columns;
  Acc* row_sum = static_cast<Acc*>(args.sums.row_partial) + row_offset;
  Acc* row_max = row_sum + column_tiles(chunk) * chunk.rows;
  Acc* column_sum = static_cast<Acc*>(args.sums.column_partial) + column_offset;
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
    fold_kernel(const Chunk chunk, const SoftmaxSums args) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kBlockThreads + threadIdx.x;
  if (item >= chunk.rows + chunk.columns) return;
  const bool is_rows = item < chunk.rows;
  const int64_t i = is_rows ? item : item - chunk.rows;
  SumPair<Acc> pair = {fixed_shift(element<Acc>(chunk.bound, 0), args.log_columns),
                       element<Acc>(args.sums.total, item)};
  if (*args.flag != 0) {
    const int64_t size = is_rows ? chunk.rows : chunk.columns;
    const int64_t count = is_rows ? column_tiles(chunk) : row_tiles(chunk);
    const void* partial = is_rows ? args.sums.row_partial : args.sums.column_partial;
    pair = {-infinity(), 0};
    for (int64_t t = 0; t < count; ++t) {
      pair = fold(pair, SumPair<Acc>{element<Acc>(partial, (count + t) * size + i),
                                     element<Acc>(partial, t * size + i)});
    }
  }
  Acc* running_max = static_cast<Acc*>(is_rows ? args.row_max : args.column_max) + i;
  Acc* running_sum = static_cast<Acc*>(is_rows ? args.row_sum : args.column_sum) + i;
  if (!(is_rows ? args.is_first_column : args.is_first_row)) {
    pair = fold(SumPair<Acc>{*running_max, *running_sum}, pair);
  }
  *running_max = pair.max;
  *running_sum = pair.sum;
}

// First pass: flag = some result cannot be expressed by the shift. Second: express them, or leave
// the shift out.
template <typename Acc, bool Second>
__global__ void __launch_bounds__(kBlockThreads) shift_kernel(const SoftmaxShift args) {
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

unsigned blocks_over(int64_t items) { return static_cast<unsigned>(tiles(items, kBlockThreads)); }

template <typename Acc>
void run_pairs(const Chunk& chunk, const SoftmaxSums& args, cudaStream_t stream) {
  exact_kernel<Acc><<<tile_grid(chunk), kBlockThreads, 0, stream>>>(chunk, args);
  fold_kernel<Acc>
      <<<blocks_over(chunk.rows + chunk.columns), kBlockThreads, 0, stream>>>(chunk, args);
}

template <typename Acc>
void run_shift(const SoftmaxShift& args, cudaStream_t stream) {
  const unsigned blocks = blocks_over(args.rows + args.columns);
  shift_kernel<Acc, false><<<blocks, kBlockThreads, 0, stream>>>(args);
  shift_kernel<Acc, true><<<blocks, kBlockThreads, 0, stream>>>(args);
}

}  // namespace

const char* launch_softmax_sums(const Chunk& chunk, const SoftmaxSums& args, void* stream_in) {
  const auto stream = static_cast<cudaStream_t>(stream_in);
  run_sums(chunk, args.sums, SoftmaxSumRule{chunk.bound, args.log_columns, args.flag}, stream);
  chunk.is_double ? run_pairs<double>(chunk, args, stream) : run_pairs<float>(chunk, args, stream);
  return launch_error();
}

const char* launch_softmax_shift(const SoftmaxShift& args, void* stream_in) {
  const auto stream = static_cast<cudaStream_t>(stream_in);
  args.is_double ? run_shift<double>(args, stream) : run_shift<float>(args, stream);
  return launch_error();
}

const char* launch_softmax_weights(const Chunk& chunk, const SoftmaxLse& lse,
                                   const MutableRows& weights, void* stream) {
  run_weights(chunk, weights, SoftmaxWeightRule{lse}, static_cast<cudaStream_t>(stream));
  return launch_error();
}

}  // namespace clipfast
