// A tile of one rank's strip of logits on the CPU.
//
// Logits exist only as tiles in cache, between the product that makes them and the rule that turns
// them into sums (forward) or weights (backward). The product is y x^T, so the elements of a vector
// run over rows of S (images), and a line of the tile's memory is a column of S (a text).
#pragma once

#include <cstdint>

namespace clipfast {

// Logits in units of ln 2, so that exponentials are powers of two: S log2(e) = product * row_scale
// * column_factor. The pair of a row, the text that belongs to the image, counts nowhere here.
struct Tile {
  const float* products;       // [columns, rows] <y_j, x_i>, columns `stride` elements apart
  int64_t stride;              // elements
  int64_t columns;             // of S in this tile
  int64_t rows;                // of S in this tile
  int64_t first_column;        // of S, among the strip's
  int64_t first_row;           // of S, among the strip's
  const float* row_scale;      // [rows] s f_i log2(e)
  const float* column_factor;  // [columns] g_j
  int64_t pair_shift;          // column c meets its pair in row c + pair_shift, if that is a row
};

}  // namespace clipfast
