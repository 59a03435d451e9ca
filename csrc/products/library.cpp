#include "products/library.h"

#include <c10/util/Exception.h>

#include <array>
#include <atomic>

#include "common/brgemm.h"
#include "products/constants.h"

namespace clipfast {
namespace {

constexpr int64_t kEntries = kProductKinds * kRowClasses;

enum class Entry : uint8_t { kUnset, kMkl, kOneDnn };

std::array<std::atomic<Entry>, kEntries> table;

}  // namespace

Library library_of(ProductKind kind, int64_t rows) {
  const int64_t row_class = rows <= kFewRows ? 0 : rows <= kSomeRows ? 1 : 2;
  const Entry entry = table[static_cast<int64_t>(kind) * kRowClasses + row_class].load();
  if (entry == Entry::kUnset) {
    return has_brgemm(at::kFloat) ? Library::kOneDnn : Library::kMkl;
  }
  return entry == Entry::kOneDnn ? Library::kOneDnn : Library::kMkl;
}

void set_libraries(const std::vector<bool>& use_onednn) {
  TORCH_CHECK(static_cast<int64_t>(use_onednn.size()) == kEntries, "expected ", kEntries,
              " entries, got ", use_onednn.size());
  for (int64_t i = 0; i < kEntries; ++i) {
    TORCH_CHECK(!use_onednn[i] || has_brgemm(at::kFloat),
                "oneDNN's block product of float32 needs AVX-512, which this processor (or "
                "CLIPFAST_CPU_CAPABILITY) does not give");
    table[i] = use_onednn[i] ? Entry::kOneDnn : Entry::kMkl;
  }
}

}  // namespace clipfast
