// The strip through oneDNN's block matrix product (brgemm), as torch exposes it.
//
// A block of R rows of x is transposed once; threads then share the columns. A thread's tile of C
// columns goes through product, epilogue and both gradient products while it is in the core's own
// cache, so no logit is written to memory. The column gradient belongs to the thread that holds the
// columns; the row gradients of the threads are added in one fixed order.
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "strip.h"

#if defined(__x86_64__) && defined(CPUBLAS_BRGEMM_F32F32F32) && defined(CPUBLAS_BRGEMM_BF16BF16F32)
#define CLIPFAST_HAS_BRGEMM 1
#endif

namespace clipfast {

#ifdef CLIPFAST_HAS_BRGEMM

namespace {

// Chosen by timing at D = 512 on a core with 1 MiB of second-level cache: fewer rows pack y more
// often, more leave the cache.
constexpr int64_t kBlockRows = 256;
constexpr int64_t kTileColumns = 128;

int64_t even(int64_t n) { return n + n % 2; }

// C = A B, or C + A B. A right operand of bfloat16 has its rows interleaved in pairs.
template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
              float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, !std::is_same_v<T, float>);
}

// Uninitialised memory for each thread, on cache lines of its own.
template <typename T>
class PerThread {
 public:
  PerThread(int64_t threads, int64_t count)
      : stride_((count * sizeof(T) + 63) / 64 * 64),
        memory_(at::empty({threads * stride_}, at::kByte)) {}

  T* operator[](int64_t thread) {
    return reinterpret_cast<T*>(static_cast<char*>(memory_.mutable_data_ptr()) + thread * stride_);
  }

 private:
  int64_t stride_;
  at::Tensor memory_;
};

// One tile on its way through a thread.
struct Work {
  int64_t row, lanes;      // of the block
  int64_t column, outers;  // of the tile
  int64_t thread;
  bool first;             // the thread's first tile of this block
  const float* products;  // [outers, lanes]
  float* buffer;          // [outers, lanes], the products themselves unless those are kept
};

template <typename T>
class Walk {
 public:
  explicit Walk(const Strip& strip) : strip_(strip), block_(std::min(kBlockRows, strip.rows)) {
    const int64_t most = at::get_num_threads();
    // A small batch is cut finer, so that every thread has a tile.
    tile_ = std::clamp<int64_t>((strip.columns / most + 15) / 16 * 16, 16, kTileColumns);
    tiles_ = (strip.columns + tile_ - 1) / tile_;
    threads_ = std::min(most, tiles_);
  }

  int64_t threads() const { return threads_; }
  int64_t block() const { return block_; }
  int64_t tile() const { return tile_; }
  const T* x(int64_t row) const { return strip_.x.const_data_ptr<T>() + row * strip_.width; }
  const T* y(int64_t column) const { return strip_.y.const_data_ptr<T>() + column * strip_.width; }

  Tile tile_of(const Work& w) const {
    return strip_.tile(w.products, w.lanes, w.row, w.lanes, w.column, w.outers);
  }

  // Calls start(row, lanes) before each block, each(work) in the threads for every tile, and
  // finish(row, lanes) after. `kept` null: products are made and dropped; `read_kept`: they are
  // taken from there; otherwise they are made into it.
  template <typename Start, typename Each, typename Finish>
  void run(float* kept, bool read_kept, const Start& start, const Each& each,
           const Finish& finish) {
    PerThread<float> buffers(threads_, tile_ * block_);
    PerThread<T> packed(1, even(strip_.width) * block_);
    for (int64_t row = 0; row < strip_.rows; row += block_) {
      const int64_t lanes = std::min(block_, strip_.rows - row);
      if (!read_kept) pack(row, lanes, packed[0]);
      start(row, lanes);
      at::parallel_for(0, threads_, 1, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; ++thread) {
          for_each_tile(thread, [&](int64_t column, int64_t outers, bool first) {
            float* buffer = buffers[thread];
            float* products = kept ? kept + row * strip_.columns + column * lanes : buffer;
            if (!read_kept) {
              multiply<T>(outers, lanes, strip_.width, y(column), strip_.width, packed[0], lanes,
                          products, lanes, false);
            }
            each(Work{row, lanes, column, outers, thread, first, products, buffer});
          });
          // Where the processor has tile registers, leaves them free for others.
          at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
        }
      });
      finish(row, lanes);
    }
  }

 private:
  template <typename Body>
  void for_each_tile(int64_t thread, const Body& body) const {
    const int64_t begin = thread * tiles_ / threads_;
    const int64_t end = (thread + 1) * tiles_ / threads_;
    for (int64_t t = begin; t < end; ++t) {
      body(t * tile_, std::min(tile_, strip_.columns - t * tile_), t == begin);
    }
  }

  // x^T of a block, as the right operand of the product. Pairs of bfloat16 move as 32 bits.
  void pack(int64_t row, int64_t lanes, T* target) const {
    auto* kernel = CLIPFAST_CPU_KERNEL(transpose);
    const int64_t words = strip_.width * sizeof(T) / 4;
    const auto* source = reinterpret_cast<const float*>(x(row));
    at::parallel_for(0, words, 64, [&](int64_t begin, int64_t end) {
      kernel({source + begin, words, lanes, end - begin,
              reinterpret_cast<float*>(target) + begin * lanes, lanes});
    });
  }

  const Strip& strip_;
  int64_t block_, tile_, tiles_, threads_;
};

// The two gradient products of a tile.
template <typename T>
class GradientProducts {
 public:
  GradientProducts(const Strip& strip, const Walk<T>& walk, at::Tensor row_grad,
                   at::Tensor column_grad)
      : walk_(walk),
        width_(strip.width),
        row_grad_(row_grad.defined() ? row_grad.mutable_data_ptr<float>() : nullptr),
        column_grad_(column_grad.defined() ? column_grad.mutable_data_ptr<float>() : nullptr),
        // The first thread adds into row_grad itself.
        parts_(row_grad_ ? walk.threads() - 1 : 0, walk.block() * width_),
        transposed_(walk.threads(), walk.block() * even(walk.tile())),
        rounded_(kPairs ? walk.threads() : 0, walk.tile() * even(walk.block())),
        x_pairs_(kPairs ? 1 : 0, even(walk.block()) * width_),
        y_pairs_(kPairs ? walk.threads() : 0, even(walk.tile()) * width_) {}

  void start_block(int64_t row, int64_t lanes) {
    if constexpr (kPairs) {
      if (!column_grad_) return;
      CLIPFAST_CPU_KERNEL(interleave_rows)
      ({walk_.x(row), width_, lanes, width_, x_pairs_[0], width_});
    }
  }

  // column_grad[tile] += Q^T x
  void add_columns(const Work& w) {
    if (!column_grad_) return;
    float* target = column_grad_ + w.column * width_;
    if constexpr (kPairs) {
      const int64_t stride = even(w.lanes);
      T* rounded = rounded_[w.thread];
      CLIPFAST_CPU_KERNEL(round_to_bf16)
      ({w.buffer, w.lanes, w.outers, w.lanes, rounded, stride});
      clear_last(rounded, w.outers, w.lanes);
      multiply<T>(w.outers, width_, stride, rounded, stride, x_pairs_[0], width_, target, width_,
                  true);
    } else {
      multiply<T>(w.outers, width_, w.lanes, w.buffer, w.lanes, walk_.x(w.row), width_, target,
                  width_, true);
    }
  }

  // row_grad[block] += Q y
  void add_rows(const Work& w) {
    if (!row_grad_) return;
    float* target = w.thread == 0 ? row_grad_ + w.row * width_ : parts_[w.thread - 1];
    T* transposed = transposed_[w.thread];
    if constexpr (kPairs) {
      const int64_t stride = even(w.outers);
      CLIPFAST_CPU_KERNEL(transpose_to_bf16)
      ({w.buffer, w.lanes, w.outers, w.lanes, transposed, stride});
      clear_last(transposed, w.lanes, w.outers);
      CLIPFAST_CPU_KERNEL(interleave_rows)
      ({walk_.y(w.column), width_, w.outers, width_, y_pairs_[w.thread], width_});
      multiply<T>(w.lanes, width_, stride, transposed, stride, y_pairs_[w.thread], width_, target,
                  width_, !w.first);
    } else {
      CLIPFAST_CPU_KERNEL(transpose)
      ({w.buffer, w.lanes, w.outers, w.lanes, transposed, w.outers});
      multiply<T>(w.lanes, width_, w.outers, transposed, w.outers, walk_.y(w.column), width_,
                  target, width_, !w.first);
    }
  }

  void finish_block(int64_t row, int64_t lanes) {
    if (!row_grad_ || walk_.threads() == 1) return;
    float* target = row_grad_ + row * width_;
    at::parallel_for(0, lanes * width_, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t thread = 1; thread < walk_.threads(); ++thread) {
        const float* part = parts_[thread - 1];
        for (int64_t i = begin; i < end; ++i) target[i] += part[i];
      }
    });
  }

 private:
  static constexpr bool kPairs = !std::is_same_v<T, float>;

  // The partner of an odd last element.
  static void clear_last(T* matrix, int64_t rows, int64_t columns) {
    if (columns % 2 == 0) return;
    for (int64_t i = 0; i < rows; ++i) matrix[i * even(columns) + columns] = T(0);
  }

  const Walk<T>& walk_;
  int64_t width_;
  float* row_grad_;
  float* column_grad_;
  PerThread<float> parts_;
  PerThread<T> transposed_, rounded_, x_pairs_, y_pairs_;
};

const auto kNothing = [](int64_t, int64_t) {};

template <typename T>
class BrgemmDriver : public StripDriver {
 public:
  void statistics(const Strip& strip, float shift, float* kept, Sums& sums) override {
    Walk<T> walk(strip);
    PerThread<double> parts(walk.threads(), walk.block());
    auto* kernel = CLIPFAST_CPU_KERNEL(tile_statistics);
    const auto each = [&](const Work& w) {
      float lane_sum[kBlockRows], outer_sum[kTileColumns];
      kernel({walk.tile_of(w), shift, lane_sum, outer_sum});
      double* part = parts[w.thread];
      for (int64_t i = 0; i < w.lanes; ++i) part[i] = (w.first ? 0.0 : part[i]) + lane_sum[i];
      for (int64_t c = 0; c < w.outers; ++c) sums.column[w.column + c] += outer_sum[c];
    };
    const auto finish = [&](int64_t row, int64_t lanes) {
      for (int64_t thread = 0; thread < walk.threads(); ++thread) {
        for (int64_t i = 0; i < lanes; ++i) sums.row[row + i] += parts[thread][i];
      }
    };
    walk.run(kept, false, kNothing, each, finish);
  }

  void maxima(const Strip& strip, const float* kept, Sums& sums) override {
    Walk<T> walk(strip);
    PerThread<float> max_parts(walk.threads(), walk.block());
    PerThread<double> sum_parts(walk.threads(), walk.block());
    PerThread<float> logits(walk.threads(), walk.block() * walk.tile());
    auto* kernel = CLIPFAST_CPU_KERNEL(tile_maxima);
    const auto each = [&](const Work& w) {
      if (w.first) {
        std::fill_n(max_parts[w.thread], w.lanes, kNoMaximum);
        std::fill_n(sum_parts[w.thread], w.lanes, 0.0);
      }
      kernel({walk.tile_of(w), logits[w.thread], max_parts[w.thread], sum_parts[w.thread],
              sums.column_max.data() + w.column, sums.column.data() + w.column});
    };
    const auto finish = [&](int64_t row, int64_t lanes) {
      for (int64_t thread = 0; thread < walk.threads(); ++thread) {
        for (int64_t i = 0; i < lanes; ++i) {
          sums.add_to_row(row + i, max_parts[thread][i], sum_parts[thread][i]);
        }
      }
    };
    walk.run(const_cast<float*>(kept), kept != nullptr, kNothing, each, finish);
  }

  void gradients(const Strip& strip, const WeightVectors& weights, const float* kept,
                 at::Tensor row_grad, at::Tensor column_grad) override {
    Walk<T> walk(strip);
    GradientProducts<T> products(strip, walk, row_grad, column_grad);
    auto* kernel = CLIPFAST_CPU_KERNEL(tile_weights);
    const auto each = [&](const Work& w) {
      kernel(weights.tile(strip, walk.tile_of(w), w.row, w.column, w.buffer));
      products.add_columns(w);
      products.add_rows(w);
    };
    walk.run(
        const_cast<float*>(kept), kept != nullptr,
        [&](int64_t row, int64_t lanes) { products.start_block(row, lanes); }, each,
        [&](int64_t row, int64_t lanes) { products.finish_block(row, lanes); });
  }
};

// oneDNN refuses a type that the processor has no instructions for by throwing.
template <typename T>
bool can_multiply() {
  const T one[4] = {T(1), T(1), T(1), T(1)};
  float product[4] = {};
  try {
    multiply<T>(2, 2, 2, one, 2, one, 2, product, 2, false);
    at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
  } catch (const std::exception&) {
    return false;
  }
  return product[0] == 2.0f && product[3] == 2.0f;
}

}  // namespace

StripDriver* brgemm_driver(at::ScalarType type) {
  static BrgemmDriver<float> single;
  static BrgemmDriver<at::BFloat16> half;
  static const bool has_single = can_multiply<float>();
  // Without the instructions oneDNN emulates them, slower than float32.
  static const bool has_half = __builtin_cpu_supports("avx512bf16") && can_multiply<at::BFloat16>();
  if (cpu_capability() != CpuCapability::kAvx512) return nullptr;
  if (type == at::kFloat) return has_single ? &single : nullptr;
  if (type == at::kBFloat16) return has_half ? &half : nullptr;
  return nullptr;
}

#else

StripDriver* brgemm_driver(at::ScalarType) { return nullptr; }

#endif

}  // namespace clipfast
