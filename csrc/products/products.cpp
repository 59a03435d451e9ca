#include "products/products.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <vector>

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
constexpr int64_t kPacked = int64_t{2} << 20;  // floats that are packed at a time
// So few rows do not repay packing b: they read it where it lies,
constexpr int64_t kRowsUnpacked = 128;
// or, where it lies transposed, c^T = b^T a^T is computed, and a^T packed.
constexpr int64_t kRowsTurned = 64;

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
int64_t round_up(int64_t n, int64_t to) { return divide_up(n, to) * to; }

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

// Where b is packed: memory of the calling thread that stays, since a buffer that came and went
// with each product would leave holes between the results that remain.
float* scratch(int64_t count) {
  thread_local std::vector<float> kept;
  if (static_cast<int64_t>(kept.size()) < count) {
    kept = {};
    kept.resize(count);
  }
  return kept.data();
}

// A panel of b as the block product reads it.
struct Panel {
  const float* data;
  int64_t stride, begin, width;
};

Panel panel_in_place(const Operand& b, int64_t panel) {
  const int64_t begin = panel * kPanel;
  return {b.data + begin, b.row_stride, begin, std::min(kPanel, b.columns - begin)};
}

Panel packed_panel(const Operand& b, int64_t panel, const float* data) {
  const int64_t begin = panel * kPanel, width = std::min(kPanel, b.columns - begin);
  return {data, width, begin, width};
}

// c = a b, or c + a b: rows of a `stride` apart, of c `c_stride`.
void multiply_rows(const float* a, int64_t stride, int64_t rows, int64_t depth, const Panel& b,
                   float* c, int64_t c_stride, bool add) {
  // Blocks of the sums as even as they come.
  const int64_t step = round_up(divide_up(depth, divide_up(depth, kDepth)), kRowMultiple);
  for (int64_t i = 0; i < rows;) {
    const int64_t left = rows - i;
    const int64_t m = left >= kStep          ? kStep
                      : left >= kRowMultiple ? left / kRowMultiple * kRowMultiple
                                             : left;
    for (int64_t k = 0; k < depth; k += step) {
      multiply<float>(m, b.width, std::min(step, depth - k), a + i * stride + k, stride,
                      b.data + k * b.stride, b.stride, c + i * c_stride, c_stride, add || k > 0);
    }
    i += m;
  }
}

// Rows [row, row + rows) of a in rows: in place, or in `buffer` [rows, K]; their sums where wanted.
Operand rows_of(const Product& p, int64_t row, int64_t rows, float* buffer, bool wants_sums) {
  const int64_t depth = p.a.columns;
  const float* a = p.a.data + row * p.a.row_stride;
  if (!p.a.is_transposed()) return {a, rows, depth, p.a.row_stride, 1};
  CLIPFAST_CPU_KERNEL(transpose)({a, p.a.column_stride, depth, rows, buffer, depth});
  if (p.row_sums && wants_sums) {
    for (int64_t i = 0; i < rows; ++i) p.row_sums[row + i] = sum(buffer + i * depth, depth);
  }
  return {buffer, rows, depth, depth, 1};
}

// A panel of c's rows from `row` on.
void multiply_panel(const Product& p, const Operand& a, int64_t row, const Panel& b) {
  const int64_t columns = p.b.columns;
  float* c = p.c + row * columns + b.begin;
  if (p.bias) {
    for (int64_t i = 0; i < a.rows; ++i) {
      std::memcpy(c + i * columns, p.bias + b.begin, b.width * sizeof(float));
    }
  }
  multiply_rows(a.data, a.row_stride, a.rows, a.columns, b, c, columns, p.bias != nullptr);
}

bool reads_b_in_place(const Product& p) {
  return p.a.rows <= kRowsUnpacked && !p.b.is_transposed();
}

bool is_turned(const Product& p) {
  return p.a.rows <= kRowsTurned && p.b.is_transposed() && !p.row_sums;
}

// a^T, as the right operand of the turned product.
Operand turned(const Operand& a) {
  return {a.data, a.columns, a.rows, a.column_stride, a.row_stride};
}

// Columns [begin, begin + count) of c by way of c^T, with a^T packed; `tile` is [count, M].
void multiply_turned(const Product& p, const float* packed, int64_t begin, int64_t count,
                     float* tile) {
  const int64_t rows = p.a.rows;
  if (p.bias) {
    for (int64_t i = 0; i < count; ++i) std::fill_n(tile + i * rows, rows, p.bias[begin + i]);
  }
  multiply_rows(p.b.data + begin * p.b.column_stride, p.b.column_stride, count, p.a.columns,
                {packed, rows, 0, rows}, tile, rows, p.bias != nullptr);
  CLIPFAST_CPU_KERNEL(transpose)({tile, rows, count, rows, p.c + begin, p.b.columns});
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

// Calls run(task, thread) for every task, the thread's tasks one after another.
template <typename Run>
void share(int64_t tasks, int64_t threads, const Run& run) {
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      const int64_t end = (thread + 1) * tasks / threads;
      for (int64_t task = thread * tasks / threads; task < end; ++task) run(task, thread);
      release_brgemm<float>();
    }
  });
}

void run_turned(const Product& p) {
  float* packed = scratch(p.a.columns * p.a.rows);
  pack_panel(turned(p.a), 0, packed);
  const int64_t tasks = divide_up(p.b.columns, kStep);
  const int64_t threads = std::min<int64_t>(tasks, at::get_num_threads());
  PerThread<float> tiles(threads, kStep * p.a.rows);
  share(tasks, threads, [&](int64_t task, int64_t thread) {
    const int64_t begin = task * kStep;
    multiply_turned(p, packed, begin, std::min(kStep, p.b.columns - begin), tiles[thread]);
  });
}

}  // namespace

void run_product(const Product& p) {
  const int64_t depth = p.a.columns;
  if (depth == 0 || p.b.columns == 0) return set_to_bias(p);
  if (p.a.rows == 0) return;
  if (is_turned(p)) return run_turned(p);
  const int64_t panels = divide_up(p.b.columns, kPanel);
  const bool in_place = reads_b_in_place(p);
  const int64_t most = in_place ? panels : std::max<int64_t>(1, kPacked / (kPanel * depth));
  const int64_t group = divide_up(panels, divide_up(panels, most));
  float* packed = in_place ? nullptr : scratch(group * kPanel * depth);
  const Shares shares(p.a.rows, group, p.a.is_transposed() ? kTransposedBlock : kBlock);
  const int64_t tasks = shares.blocks * shares.parts;
  const int64_t threads = std::min<int64_t>(tasks, at::get_num_threads());
  PerThread<float> buffers(threads, p.a.is_transposed() ? shares.rows * depth : 0);
  for (int64_t first = 0; first < panels; first += group) {
    const int64_t count = std::min(group, panels - first);
    const auto panel_memory = [&](int64_t i) { return packed + (i - first) * depth * kPanel; };
    if (!in_place) {
      at::parallel_for(first, first + count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) pack_panel(p.b, i, panel_memory(i));
      });
    }
    share(tasks, threads, [&](int64_t task, int64_t thread) {
      const int64_t row = task / shares.parts * shares.rows, part = task % shares.parts;
      const int64_t rows = std::min(shares.rows, p.a.rows - row);
      const Operand a = rows_of(p, row, rows, buffers[thread], first == 0 && part == 0);
      const int64_t end = first + (part + 1) * count / shares.parts;
      for (int64_t i = first + part * count / shares.parts; i < end; ++i) {
        multiply_panel(p, a, row,
                       in_place ? panel_in_place(p.b, i) : packed_panel(p.b, i, panel_memory(i)));
      }
    });
  }
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
  // A thread packs what it multiplies; few products are cut by panels as well.
  const int64_t panels = divide_up(columns, kPanel), most = at::get_num_threads();
  const int64_t parts = std::min(panels, divide_up(most, count)), tasks = count * parts;
  const int64_t threads = std::min(tasks, most);
  const bool turns = is_turned(first), in_place = reads_b_in_place(first);
  PerThread<float> packed(threads, in_place ? 0 : (turns ? rows : kPanel) * depth);
  PerThread<float> buffers(threads, turns                     ? kStep * rows
                                    : first.a.is_transposed() ? rows * depth
                                                              : 0);
  share(tasks, threads, [&](int64_t task, int64_t thread) {
    const Product p = at(task / parts);
    const int64_t part = task % parts;
    const int64_t begin = part * panels / parts, end = (part + 1) * panels / parts;
    if (turns) {
      pack_panel(turned(p.a), 0, packed[thread]);
      for (int64_t i = begin * kPanel; i < std::min(columns, end * kPanel); i += kStep) {
        multiply_turned(p, packed[thread], i, std::min(kStep, columns - i), buffers[thread]);
      }
      return;
    }
    const Operand a = rows_of(p, 0, rows, buffers[thread], false);
    for (int64_t i = begin; i < end; ++i) {
      if (!in_place) pack_panel(p.b, i, packed[thread]);
      multiply_panel(p, a, 0,
                     in_place ? panel_in_place(p.b, i) : packed_panel(p.b, i, packed[thread]));
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
