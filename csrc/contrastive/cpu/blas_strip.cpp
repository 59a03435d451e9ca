// The strip through torch's own matrix product, for machines without oneDNN's block product.
//
// Tiles are as large as a shared cache holds, since a library product pays for packing its operands
// at each call; the epilogue runs over a tile's columns in threads right after.
#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "strip.h"

namespace clipfast {
namespace {

// 8 MiB of products.
constexpr int64_t kBlockRows = 1024;
constexpr int64_t kTileColumns = 2048;
// Columns that a thread's epilogue takes at a time.
constexpr int64_t kSlice = 32;

struct Block {
  int64_t row, lanes, column, outers;
};

// Calls each(block, products [outers, lanes]) for every tile; `kept` and `read_kept` as in the
// other driver.
template <typename Each>
void for_each_tile(const Strip& strip, float* kept, bool read_kept, const Each& each) {
  const int64_t block = std::min(kBlockRows, strip.rows);
  const int64_t tile = std::min(kTileColumns, strip.columns);
  at::Tensor buffer = kept ? at::Tensor() : at::empty({tile, block}, strip.x.options());
  for (int64_t row = 0; row < strip.rows; row += block) {
    const int64_t lanes = std::min(block, strip.rows - row);
    for (int64_t column = 0; column < strip.columns; column += tile) {
      const int64_t outers = std::min(tile, strip.columns - column);
      float* memory =
          kept ? kept + row * strip.columns + column * lanes : buffer.mutable_data_ptr<float>();
      at::Tensor products = at::from_blob(memory, {outers, lanes}, strip.x.options());
      if (!read_kept) {
        at::mm_out(products, strip.y.narrow(0, column, outers), strip.x.narrow(0, row, lanes).t());
      }
      each(Block{row, lanes, column, outers}, products);
    }
  }
}

// Calls each(slice's number, its first column within the block, its columns) in threads.
template <typename Each>
void for_each_slice(int64_t outers, const Each& each) {
  at::parallel_for(0, (outers + kSlice - 1) / kSlice, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      each(slice, slice * kSlice, std::min(kSlice, outers - slice * kSlice));
    }
  });
}

class BlasDriver : public StripDriver {
 public:
  void statistics(const Strip& strip, float shift, float* kept, Sums& sums) override {
    auto* kernel = CLIPFAST_CPU_KERNEL(tile_statistics);
    std::vector<float> parts(kTileColumns / kSlice * kBlockRows);
    for_each_tile(strip, kept, false, [&](const Block& b, const at::Tensor& products) {
      for_each_slice(b.outers, [&](int64_t slice, int64_t first, int64_t count) {
        float outer_sum[kSlice];
        kernel({slice_of(strip, b, products, first, count), shift,
                parts.data() + slice * kBlockRows, outer_sum});
        for (int64_t c = 0; c < count; ++c) sums.column[b.column + first + c] += outer_sum[c];
      });
      for (int64_t slice = 0; slice * kSlice < b.outers; ++slice) {
        const float* part = parts.data() + slice * kBlockRows;
        for (int64_t i = 0; i < b.lanes; ++i) sums.row[b.row + i] += part[i];
      }
    });
  }

  void maxima(const Strip& strip, const float* kept, Sums& sums) override {
    auto* kernel = CLIPFAST_CPU_KERNEL(tile_maxima);
    std::vector<float> logits(kSlice * kBlockRows), max_part(kBlockRows);
    std::vector<double> sum_part(kBlockRows);
    for_each_tile(
        strip, const_cast<float*>(kept), kept != nullptr,
        [&](const Block& b, const at::Tensor& products) {
          // Rare, so one thread serves.
          for (int64_t first = 0; first < b.outers; first += kSlice) {
            const int64_t count = std::min(kSlice, b.outers - first);
            std::fill_n(max_part.data(), b.lanes, kNoMaximum);
            std::fill_n(sum_part.data(), b.lanes, 0.0);
            kernel({slice_of(strip, b, products, first, count), logits.data(), max_part.data(),
                    sum_part.data(), sums.column_max.data() + b.column + first,
                    sums.column.data() + b.column + first});
            for (int64_t i = 0; i < b.lanes; ++i) {
              sums.add_to_row(b.row + i, max_part[i], sum_part[i]);
            }
          }
        });
  }

  void gradients(const Strip& strip, const WeightVectors& weights, const float* kept,
                 at::Tensor row_grad, at::Tensor column_grad) override {
    auto* kernel = CLIPFAST_CPU_KERNEL(tile_weights);
    at::Tensor buffer;
    for_each_tile(
        strip, const_cast<float*>(kept), kept != nullptr,
        [&](const Block& b, const at::Tensor& products) {
          at::Tensor q = products;
          if (kept) {
            if (!buffer.defined()) buffer = at::empty_like(products);
            q = buffer.flatten().narrow(0, 0, products.numel()).view(products.sizes());
          }
          for_each_slice(b.outers, [&](int64_t, int64_t first, int64_t count) {
            kernel(weights.tile(strip, slice_of(strip, b, products, first, count), b.row,
                                b.column + first, q.mutable_data_ptr<float>() + first * b.lanes));
          });
          if (row_grad.defined()) {
            at::Tensor target = row_grad.narrow(0, b.row, b.lanes);
            const at::Tensor y = strip.y.narrow(0, b.column, b.outers);
            at::addmm_out(target, target, q.t(), y, b.column == 0 ? 0 : 1);
          }
          if (column_grad.defined()) {
            at::Tensor target = column_grad.narrow(0, b.column, b.outers);
            at::addmm_out(target, target, q, strip.x.narrow(0, b.row, b.lanes));
          }
        });
  }

 private:
  static Tile slice_of(const Strip& strip, const Block& b, const at::Tensor& products,
                       int64_t first, int64_t count) {
    return strip.tile(products.const_data_ptr<float>() + first * b.lanes, b.lanes, b.row, b.lanes,
                      b.column + first, count);
  }
};

}  // namespace

StripDriver* blas_driver() {
  static BlasDriver driver;
  return &driver;
}

}  // namespace clipfast
