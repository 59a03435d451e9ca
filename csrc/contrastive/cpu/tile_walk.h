// The walk over a tile of logits with ATen's vector types. What is done with a logit is a rule's
// part; softmax_rule.h is one. For `*_cpu_kernel.cpp` files only, which are compiled once per
// capability.
//
// A walk reads a tile once, from cache, while the eager form sends every logit through memory about
// ten times (scale, two softmaxes with their maxima and sums, and their backwards).
#pragma once

#include <algorithm>

#include "common/cpu_pair.h"
#include "tile.h"

namespace clipfast::CPU_CAPABILITY {
namespace {

using Vec = Vectorized<float>;

inline float sum_of(const Vec& v) {
  float elements[Vec::size()];
  v.store(elements);
  return sum_tree(elements);
}

// Calls visit(first row, number of rows, vector load of a float array at those rows), for whole
// vectors and then for what is left.
template <typename Visit>
inline void for_each_vector(int64_t rows, const Visit& visit) {
  int64_t i = 0;
  for (; i + Vec::size() <= rows; i += Vec::size()) {
    visit(i, Vec::size(), [i](const float* p) { return Vec::loadu(p + i); });
  }
  if (i < rows) {
    const int64_t count = rows - i;
    visit(i, count, [i, count](const float* p) { return Vec::loadu(p + i, count); });
  }
}

inline void store(const Vec& v, float* p, int64_t count) {
  if (count == Vec::size()) {
    v.store(p);
  } else {
    v.store(p, static_cast<int>(count));
  }
}

// The row in which column c meets its pair, or -1.
inline int64_t pair_row(const Tile& tile, int64_t c) {
  const int64_t row = c + tile.pair_shift;
  return row >= 0 && row < tile.rows ? row : -1;
}

// v with a zero for one of the rows from `first` on.
inline Vec without_row(const Vec& v, int64_t first, int64_t row) {
  const Vec rows = Vec::arange(static_cast<float>(first), 1.0f);
  return Vec::blendv(v, Vec(0.0f), rows == Vec(static_cast<float>(row)));
}

// e_ij = rule(S_ij log2(e)), zero for pairs.
//   rule: from a vector of logits to a vector of e
//   row_sum: [rows], overwritten by sum_j e_ij
//   column_sum: [columns], overwritten by sum_i e_ij
template <typename Rule>
inline void add_up_tile(const Tile& tile, const Rule rule, float* row_sum, float* column_sum) {
  std::fill_n(row_sum, tile.rows, 0.0f);
  for (int64_t c = 0; c < tile.columns; ++c) {
    const float* products = tile.products + c * tile.stride;
    const Vec factor(tile.column_factor[c]);
    const int64_t pair = pair_row(tile, c);
    Vec total(0.0f);
    for_each_vector(tile.rows, [&](int64_t i, int64_t count, const auto& load) {
      const Vec logit = load(products) * load(tile.row_scale) * factor;
      Vec e = rule(logit);
      if (pair >= i && pair < i + count) e = without_row(e, i, pair);
      if (count < Vec::size()) e = Vec::set(Vec(0.0f), e, count);
      store(load(row_sum) + e, row_sum + i, count);
      total = total + e;
    });
    column_sum[c] = sum_of(total);
  }
}

// Q_ij, the factor of y_j in the gradient of x_i and the reverse; zero for pairs.
//   rule: rule.column(c) gives what makes Q of column c, from a vector of logits, of g_c, and a
//         load of the rule's own vectors at the same rows
//   weights: [columns, rows] out, columns tile.stride apart; may be the products themselves
template <typename Rule>
inline void weigh_tile(const Tile& tile, const Rule rule, float* weights) {
  for (int64_t c = 0; c < tile.columns; ++c) {
    const float* products = tile.products + c * tile.stride;
    float* out = weights + c * tile.stride;
    const Vec factor(tile.column_factor[c]);
    const auto weight = rule.column(c);
    const int64_t pair = pair_row(tile, c);
    for_each_vector(tile.rows, [&](int64_t i, int64_t count, const auto& load) {
      const Vec logit = load(products) * load(tile.row_scale) * factor;
      Vec q = weight(logit, factor, load);
      if (pair >= i && pair < i + count) q = without_row(q, i, pair);
      store(q, out + i, count);
    });
  }
}

}  // namespace
}  // namespace clipfast::CPU_CAPABILITY
