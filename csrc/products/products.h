// Matrix products of float32 on the CPU, by oneDNN's block product (brgemm).
//
//   c = a b           a [M, K], b [K, N], c [M, N]
//   c = a b + bias    bias [N]
//
// Torch hands float32 products to MKL, which takes its slower instructions on processors that are
// not Intel's: on an AMD EPYC of Zen 5 it reaches 0.45 of what the block product does. The same
// result to rounding; every sum is float32, in blocks of at most kDepth terms, and its order does
// not depend on the number of threads.
//
// b is packed into panels of kPanel columns, a group of them at a time; for few rows it is read
// where it lies, or the product is turned round. a is read where it lies, or, where it lies
// transposed, transposed by blocks of rows into a thread's own cache.
#pragma once

#include <cstdint>

namespace clipfast {

// A matrix whose rows (row_stride, column_stride 1) or columns (row_stride 1, column_stride) are
// contiguous.
struct Operand {
  const float* data;
  int64_t rows, columns;
  int64_t row_stride, column_stride;

  bool is_transposed() const { return column_stride != 1; }
};

struct Product {
  Operand a, b;
  float* c;                     // [M, N], rows contiguous and adjacent
  const float* bias = nullptr;  // [N]
  float* row_sums = nullptr;    // [M]: the sums of a's rows, where a is transposed
};

// One product, shared among the threads.
void run_product(const Product& product);

// `count` products of one shape, operands and results `strides` floats apart. A thread takes whole
// products; where there are fewer products than threads, parts of their columns.
struct BatchStrides {
  int64_t a, b, c;
};
void run_products(const Product& first, const BatchStrides& strides, int64_t count);

}  // namespace clipfast
