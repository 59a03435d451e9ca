// Which library multiplies: a table that Python fills (clipfast/ops/products/library.py).
#pragma once

#include <cstdint>
#include <vector>

namespace clipfast {

enum class Library { kMkl, kOneDnn };

// What is computed: y = x W^T, its two gradients, or a batch of small products.
enum class ProductKind { kForward, kGradInput, kGradWeight, kBatched };

// The library of a kind for a number of rows of x.
Library library_of(ProductKind kind, int64_t rows);

// Index into the table: kind * kRowClasses + row class.
constexpr int64_t kProductKinds = 4;
constexpr int64_t kRowClasses = 3;

// True: oneDNN's block product, which needs has_brgemm(kFloat). As many entries as the table has.
void set_libraries(const std::vector<bool>& use_onednn);

}  // namespace clipfast
