// How the strip is cut for oneDNN's block matrix product (brgemm) and shared among threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>

#include "common/brgemm.h"
#include "common/packing.h"
#include "strip.h"

#ifdef CLIPFAST_HAS_BRGEMM

namespace clipfast {
namespace {

// Chosen by timing at D = 512 on a core with 1 MiB of second-level cache: fewer rows pack y more
// often, more leave the cache.
constexpr int64_t kBlockRows = 256;
constexpr int64_t kTileColumns = 128;

int64_t even(int64_t n) { return n + n % 2; }

// One tile on its way through a thread.
struct Work {
  int64_t row, rows;        // of the block
  int64_t column, columns;  // of the tile
  int64_t thread;
  bool first;             // the thread's first tile of this block
  const float* products;  // [columns, rows]
  float* buffer;          // [columns, rows], the products themselves unless those are kept
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
    return strip_.tile(w.products, w.rows, w.row, w.rows, w.column, w.columns);
  }

  // Calls start(row, rows) before each block, each(work) in the threads for every tile, and
  // finish(row, rows) after. `kept` null: products are made and dropped; `read_kept`: they are
  // taken from there; otherwise they are made into it.
  template <typename Start, typename Each, typename Finish>
  void run(float* kept, bool read_kept, const Start& start, const Each& each,
           const Finish& finish) {
    PerThread<float> buffers(threads_, tile_ * block_);
    PerThread<T> packed(1, even(strip_.width) * block_);
    for (int64_t row = 0; row < strip_.rows; row += block_) {
      const int64_t rows = std::min(block_, strip_.rows - row);
      if (!read_kept) pack(row, rows, packed[0]);
      start(row, rows);
      at::parallel_for(0, threads_, 1, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; ++thread) {
          for_each_tile(thread, [&](int64_t column, int64_t columns, bool first) {
            float* buffer = buffers[thread];
            float* products = kept ? kept + row * strip_.columns + column * rows : buffer;
            if (!read_kept) {
              multiply<T>(columns, rows, strip_.width, y(column), strip_.width, packed[0], rows,
                          products, rows, false);
            }
            each(Work{row, rows, column, columns, thread, first, products, buffer});
          });
          release_brgemm<T>();
        }
      });
      finish(row, rows);
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
  void pack(int64_t row, int64_t rows, T* target) const {
    auto* kernel = CLIPFAST_CPU_KERNEL(transpose);
    const int64_t words = strip_.width * sizeof(T) / 4;
    const auto* source = reinterpret_cast<const float*>(x(row));
    at::parallel_for(0, words, 64, [&](int64_t begin, int64_t end) {
      kernel({source + begin, words, rows, end - begin,
              reinterpret_cast<float*>(target) + begin * rows, rows});
    });
  }

  const Strip& strip_;
  int64_t block_, tile_, tiles_, threads_;
};

}  // namespace
}  // namespace clipfast

#endif
