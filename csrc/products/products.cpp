#include "products/products.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>

#include "common/brgemm.h"
#include "common/packing.h"

namespace clipfast {

#ifdef CLIPFAST_HAS_BRGEMM

namespace {

// Chosen by timing on cores with 1 MiB of second-level cache, widths 512 to 4,096.
constexpr int64_t kPanel = 64;            // columns of b that are packed together
constexpr int64_t kBlock = 256;           // rows of a that pass all panels in turn
constexpr int64_t kTransposedBlock = 64;  // of a transposed a, which lie in a buffer
constexpr int64_t kStep = 64;             // rows of one block product
constexpr int64_t kDepth = 128;           // terms of a sum before it is added to c
constexpr int64_t kRowMultiple = 16;      // few distinct numbers of rows: each is compiled once

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
int64_t round_up(int64_t n, int64_t to) { return divide_up(n, to) * to; }

struct Packed {
  const float* panels;  // [P, K, kPanel] from panel `first` on, the last panel of all narrower
  int64_t depth, columns;
  int64_t first = 0;

  int64_t width(int64_t panel) const { return std::min(kPanel, columns - panel * kPanel); }
  const float* panel(int64_t p) const { return panels + (p - first) * depth * kPanel; }
};

void pack_panel(const Operand& b, int64_t panel, float* out) {
  const int64_t begin = panel * kPanel, width = std::min(kPanel, b.columns - begin);
  if (b.is_transposed()) {
    auto* transpose = CLIPFAST_CPU_KERNEL(transpose);
    transpose({b.data + begin * b.column_stride, b.column_stride, width, b.rows, out, width});
    return;
  }
  for (int64_t k = 0; k < b.rows; ++k) {
    std::memcpy(out + k * width, b.data + k * b.row_stride + begin, width * sizeof(float));
  }
}

float sum(const float* x, int64_t count) {
  constexpr int64_t kLanes = 32;  // the compiler makes vectors of them
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane];
  }
  double total = 0.0;
  for (const float lane : lanes) total += lane;
  for (; i < count; ++i) total += x[i];
  return static_cast<float>(total);
}

// Rows [row, row + rows) of c by columns of panels [begin, end). `buffer` [rows, K] takes a
// transposed a.
void multiply_block(const Product& p, const Packed& b, int64_t row, int64_t rows, int64_t begin,
                    int64_t end, float* buffer) {
  const int64_t depth = p.a.columns, columns = b.columns;
  const float* a = p.a.data + row * p.a.row_stride;
  int64_t stride = p.a.row_stride;
  if (p.a.is_transposed()) {
    CLIPFAST_CPU_KERNEL(transpose)({a, p.a.column_stride, depth, rows, buffer, depth});
    a = buffer;
    stride = depth;
    if (p.row_sums && begin == 0) {
      for (int64_t i = 0; i < rows; ++i) p.row_sums[row + i] = sum(a + i * depth, depth);
    }
  }
  // Blocks of the sums as even as they come.
  const int64_t step =
      round_up(divide_up(depth, std::max<int64_t>(1, divide_up(depth, kDepth))), kRowMultiple);
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t width = b.width(panel);
    for (int64_t i = 0; i < rows;) {
      // The last rows one by one in multiples, so that few shapes are ever compiled.
      const int64_t left = rows - i;
      const int64_t m = left >= kStep          ? kStep
                        : left >= kRowMultiple ? left / kRowMultiple * kRowMultiple
                                               : left;
      float* c = p.c + (row + i) * columns + panel * kPanel;
      if (p.bias) {
        for (int64_t r = 0; r < m; ++r) {
          std::memcpy(c + r * columns, p.bias + panel * kPanel, width * sizeof(float));
        }
      }
      for (int64_t k = 0; k < depth; k += step) {
        multiply<float>(m, width, std::min(step, depth - k), a + i * stride + k, stride,
                        b.panel(panel) + k * width, width, c, columns, p.bias != nullptr || k > 0);
      }
      i += m;
    }
  }
}

// How the rows and panels of one product are shared: `blocks` times `parts` tasks.
struct Shares {
  int64_t rows;    // of a block
  int64_t blocks;  // of rows
  int64_t parts;   // of the panels

  Shares(int64_t all_rows, int64_t panels, int64_t block) {
    const int64_t threads = at::get_num_threads();
    blocks = divide_up(all_rows, block);
    parts = 1;
    if (blocks >= threads) {
      blocks = round_up(blocks, threads);
    } else {
      parts = std::min(panels, divide_up(threads, blocks));
    }
    rows = round_up(divide_up(all_rows, blocks), kRowMultiple);
    blocks = divide_up(all_rows, rows);
  }
};

void set_to_bias(const Product& p) {
  for (int64_t i = 0; i < p.a.rows; ++i) {
    for (int64_t j = 0; j < p.b.columns; ++j) p.c[i * p.b.columns + j] = p.bias ? p.bias[j] : 0.0f;
  }
  if (p.row_sums) std::fill_n(p.row_sums, p.a.rows, 0.0f);
}

}  // namespace

void run_product(const Product& p) {
  const int64_t depth = p.a.columns;
  if (depth == 0 || p.b.columns == 0) return set_to_bias(p);
  if (p.a.rows == 0) return;
  const int64_t panels = divide_up(p.b.columns, kPanel);
  PerThread<float> memory(1, panels * kPanel * depth);
  const Packed packed{memory[0], depth, p.b.columns};
  at::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) pack_panel(p.b, i, memory[0] + i * depth * kPanel);
  });
  const Shares shares(p.a.rows, panels, p.a.is_transposed() ? kTransposedBlock : kBlock);
  const int64_t tasks = shares.blocks * shares.parts;
  const int64_t threads = std::min<int64_t>(tasks, at::get_num_threads());
  PerThread<float> buffers(threads, p.a.is_transposed() ? shares.rows * depth : 0);
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      const int64_t end = (thread + 1) * tasks / threads;
      for (int64_t task = thread * tasks / threads; task < end; ++task) {
        const int64_t row = task / shares.parts * shares.rows, part = task % shares.parts;
        multiply_block(p, packed, row, std::min(shares.rows, p.a.rows - row),
                       part * panels / shares.parts, (part + 1) * panels / shares.parts,
                       buffers[thread]);
      }
      release_brgemm<float>();
    }
  });
}

void run_products(const Product& first, const BatchStrides& strides, int64_t count) {
  const int64_t rows = first.a.rows, depth = first.a.columns, columns = first.b.columns;
  if (rows == 0 || columns == 0 || count == 0) return;
  const auto at = [&](int64_t item) {
    Product p = first;
    p.a.data += item * strides.a;
    p.b.data += item * strides.b;
    p.c += item * strides.c;
    return p;
  };
  if (depth == 0) {
    for (int64_t item = 0; item < count; ++item) set_to_bias(at(item));
    return;
  }
  // A thread packs the panels that it multiplies; few products are cut by panels as well.
  const int64_t panels = divide_up(columns, kPanel), most = at::get_num_threads();
  const int64_t parts = std::min(panels, divide_up(most, count)), tasks = count * parts;
  const int64_t threads = std::min(tasks, most);
  PerThread<float> packed(threads, kPanel * depth);
  PerThread<float> buffers(threads, first.a.is_transposed() ? rows * depth : 0);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      const int64_t last = (thread + 1) * tasks / threads;
      for (int64_t task = thread * tasks / threads; task < last; ++task) {
        Product p = at(task / parts);
        if (p.a.is_transposed()) {
          CLIPFAST_CPU_KERNEL(transpose)
          ({p.a.data, p.a.column_stride, depth, rows, buffers[thread], depth});
          p.a = {buffers[thread], rows, depth, depth, 1};
        }
        const int64_t part = task % parts;
        for (int64_t i = part * panels / parts; i < (part + 1) * panels / parts; ++i) {
          pack_panel(p.b, i, packed[thread]);
          multiply_block(p, {packed[thread], depth, columns, i}, 0, rows, i, i + 1, nullptr);
        }
      }
      release_brgemm<float>();
    }
  });
}

#else

void run_product(const Product&) { TORCH_CHECK(false, "no block product on this processor"); }

void run_products(const Product&, const BatchStrides&, int64_t) {
  TORCH_CHECK(false, "no block product on this processor");
}

#endif

}  // namespace clipfast
