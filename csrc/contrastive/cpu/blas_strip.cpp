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
// Columns that a thread's rule takes at a time.
constexpr int64_t kSlice = 32;

struct Block {
  int64_t row, rows, column, columns;
};

// Calls each(block, products [columns, rows]) for every tile; `kept` and `read_kept` as in the
// other driver.
template <typename Each>
void for_each_tile(const Strip& strip, float* kept, bool read_kept, const Each& each) {
  const int64_t block = std::min(kBlockRows, strip.rows);
  const int64_t tile = std::min(kTileColumns, strip.columns);
  at::Tensor buffer = kept ? at::Tensor() : at::empty({tile, block}, strip.x.options());
  for (int64_t row = 0; row < strip.rows; row += block) {
    const int64_t rows = std::min(block, strip.rows - row);
    for (int64_t column = 0; column < strip.columns; column += tile) {
      const int64_t columns = std::min(tile, strip.columns - column);
      float* memory =
          kept ? kept + row * strip.columns + column * rows : buffer.mutable_data_ptr<float>();
      at::Tensor products = at::from_blob(memory, {columns, rows}, strip.x.options());
      if (!read_kept) {
        at::mm_out(products, strip.y.narrow(0, column, columns), strip.x.narrow(0, row, rows).t());
      }
      each(Block{row, rows, column, columns}, products);
    }
  }
}

// Calls each(slice's number, its first column within the block, its columns) in threads.
template <typename Each>
void for_each_slice(int64_t columns, const Each& each) {
  at::parallel_for(0, (columns + kSlice - 1) / kSlice, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      each(slice, slice * kSlice, std::min(kSlice, columns - slice * kSlice));
    }
  });
}

class BlasDriver : public StripDriver {
 public:
  void sums(const Strip& strip, const TileSums& add_up, float* kept, Sums& sums) override {
    std::vector<float> parts(kTileColumns / kSlice * kBlockRows);
    for_each_tile(strip, kept, false, [&](const Block& b, const at::Tensor& products) {
      for_each_slice(b.columns, [&](int64_t slice, int64_t first, int64_t count) {
        float column_sum[kSlice];
        add_up(slice_of(strip, b, products, first, count), parts.data() + slice * kBlockRows,
               column_sum);
        for (int64_t c = 0; c < count; ++c) sums.column[b.column + first + c] += column_sum[c];
      });
      for (int64_t slice = 0; slice * kSlice < b.columns; ++slice) {
        const float* part = parts.data() + slice * kBlockRows;
        for (int64_t i = 0; i < b.rows; ++i) sums.row[b.row + i] += part[i];
      }
    });
  }

  void maxima(const Strip& strip, const TileMaxima& merge, const float* kept,
              Maxima& maxima) override {
    std::vector<float> logits(kSlice * kBlockRows), max_part(kBlockRows);
    std::vector<double> sum_part(kBlockRows);
    for_each_tile(
        strip, const_cast<float*>(kept), kept != nullptr,
        [&](const Block& b, const at::Tensor& products) {
          // Rare, so one thread serves.
          for (int64_t first = 0; first < b.columns; first += kSlice) {
            const int64_t count = std::min(kSlice, b.columns - first);
            std::fill_n(max_part.data(), b.rows, kNoMaximum);
            std::fill_n(sum_part.data(), b.rows, 0.0);
            merge(slice_of(strip, b, products, first, count), logits.data(),
                  {max_part.data(), sum_part.data(), maxima.column_max.data() + b.column + first,
                   maxima.column.data() + b.column + first});
            for (int64_t i = 0; i < b.rows; ++i) {
              maxima.add_to_row(b.row + i, max_part[i], sum_part[i]);
            }
          }
        });
  }

  void gradients(const Strip& strip, const TileWeights& weigh, const float* kept,
                 at::Tensor row_grad, at::Tensor column_grad) override {
    at::Tensor buffer;
    for_each_tile(strip, const_cast<float*>(kept), kept != nullptr,
                  [&](const Block& b, const at::Tensor& products) {
                    at::Tensor q = products;
                    if (kept) {
                      if (!buffer.defined()) buffer = at::empty_like(products);
                      q = buffer.flatten().narrow(0, 0, products.numel()).view(products.sizes());
                    }
                    for_each_slice(b.columns, [&](int64_t, int64_t first, int64_t count) {
                      weigh(slice_of(strip, b, products, first, count),
                            q.mutable_data_ptr<float>() + first * b.rows);
                    });
                    if (row_grad.defined()) {
                      at::Tensor target = row_grad.narrow(0, b.row, b.rows);
                      const at::Tensor y = strip.y.narrow(0, b.column, b.columns);
                      at::addmm_out(target, target, q.t(), y, b.column == 0 ? 0 : 1);
                    }
                    if (column_grad.defined()) {
                      at::Tensor target = column_grad.narrow(0, b.column, b.columns);
                      at::addmm_out(target, target, q, strip.x.narrow(0, b.row, b.rows));
                    }
                  });
  }

 private:
  static Tile slice_of(const Strip& strip, const Block& b, const at::Tensor& products,
                       int64_t first, int64_t count) {
    return strip.tile(products.const_data_ptr<float>() + first * b.rows, b.rows, b.row, b.rows,
                      b.column + first, count);
  }
};

}  // namespace

StripDriver* blas_driver() {
  static BlasDriver driver;
  return &driver;
}

}  // namespace clipfast
