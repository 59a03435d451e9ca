// What the kernels over lists of tensors share: the list as a kernel's argument, and a lane's
// elements of any type, as packs of 16 bytes where they can be. Free of torch headers.
#pragma once

#include "adamw_cuda.h"
#include "common/cuda_rows.cuh"

namespace clipfast::adamw {
namespace {

constexpr int kWarps = kBlockThreads / kWarp;
constexpr int kLane = kBlock / kWarp;  // consecutive elements of a lane
static_assert(kLane == kDraw, "a lane's elements are those of one draw");

// Bytes that a kernel's argument may have: before CUDA 12.1 it was 4 KiB.
#if CUDART_VERSION >= 12010
constexpr int kArgumentBytes = 32764;
#else
constexpr int kArgumentBytes = 4096;
#endif

// The tensors of one launch, and where each one's chunks begin among all chunks of the launch. A
// thread block works on one chunk.
template <typename Item, int Capacity>
struct List {
  int items;
  uint32_t first_chunk[Capacity];
  Item item[Capacity];
};

// Items that fit an argument beside `Rest`.
template <typename Item, typename Rest>
constexpr int kFitting = (kArgumentBytes - static_cast<int>(sizeof(Rest)) - 32) /
                         static_cast<int>(sizeof(Item) + sizeof(uint32_t));

// Which item a chunk belongs to.
template <typename Item, int Capacity>
__device__ __forceinline__ int find_item(const List<Item, Capacity>& list, uint32_t chunk) {
  int low = 0, high = list.items;  // the item is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (list.first_chunk[middle] <= chunk) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Splits items into launches: calls launch(chunks) when `list` is full, and after the last item.
template <typename Item, int Capacity, typename Chunks, typename Launch>
void for_each_list(List<Item, Capacity>& list, const Item* items, int64_t count,
                   const Chunks& chunks_of, const Launch& launch) {
  uint32_t chunks = 0;
  list.items = 0;
  for (int64_t i = 0; i < count; ++i) {
    list.item[list.items] = items[i];
    list.first_chunk[list.items] = chunks;
    chunks += static_cast<uint32_t>(chunks_of(items[i]));
    ++list.items;
    if (list.items < Capacity && i + 1 < count) continue;
    launch(chunks);
    chunks = 0;
    list.items = 0;
  }
}

// Whether 16-byte packs can be taken from all of these; null counts as yes.
template <typename... Pointers>
__device__ __forceinline__ bool are_aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) | ...) & 15) == 0;
}

// Where a lane's elements are. Those of a whole block of aligned tensors move as packs.
struct Place {
  int64_t first;  // index in the tensor
  int count;      // elements that exist, 0 to kLane
  bool is_packed;
};

__device__ __forceinline__ Place make_place(int64_t first, int64_t numel) {
  const int64_t rest = numel - first;
  return {first, rest >= kLane ? kLane : rest > 0 ? static_cast<int>(rest) : 0, false};
}

// A lane's elements as they lie in memory: four words of 2-byte elements or eight of 4-byte ones.
struct Words {
  uint32_t word[kLane];
};

__device__ __forceinline__ void set_pack(Words& words, int first, uint4 v) {
  words.word[first] = v.x;
  words.word[first + 1] = v.y;
  words.word[first + 2] = v.z;
  words.word[first + 3] = v.w;
}

__device__ __forceinline__ uint4 pack(const Words& words, int first) {
  return {words.word[first], words.word[first + 1], words.word[first + 2], words.word[first + 3]};
}

// Half i of words.
__device__ __forceinline__ uint16_t half_word(const uint32_t* word, int i) {
  return static_cast<uint16_t>(word[i / 2] >> (16 * (i % 2)));
}

__device__ __forceinline__ void set_half_word(uint32_t* word, int i, uint16_t v) {
  word[i / 2] = i % 2 == 0 ? v : word[i / 2] | uint32_t{v} << 16;
}

// Elements that do not exist are zero. is_wide: 4-byte elements.
__device__ __forceinline__ Words load(const void* base, const Place& place, bool is_wide) {
  Words words{};
  const char* address = static_cast<const char*>(base) + (place.first << (is_wide ? 2 : 1));
  if (place.is_packed) {
    const uint4* packs = reinterpret_cast<const uint4*>(address);
    set_pack(words, 0, __ldcs(packs));
    if (is_wide) set_pack(words, 4, __ldcs(packs + 1));
    return words;
  }
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    if (i >= place.count) continue;
    if (is_wide) {
      words.word[i] = reinterpret_cast<const uint32_t*>(address)[i];
    } else {
      set_half_word(words.word, i, reinterpret_cast<const uint16_t*>(address)[i]);
    }
  }
  return words;
}

__device__ __forceinline__ void store(void* base, const Place& place, bool is_wide,
                                      const Words& words) {
  char* address = static_cast<char*>(base) + (place.first << (is_wide ? 2 : 1));
  if (place.is_packed) {
    uint4* packs = reinterpret_cast<uint4*>(address);
    __stcs(packs, pack(words, 0));
    if (is_wide) __stcs(packs + 1, pack(words, 4));
    return;
  }
#pragma unroll
  for (int i = 0; i < kLane; ++i) {
    if (i >= place.count) continue;
    if (is_wide) {
      reinterpret_cast<uint32_t*>(address)[i] = words.word[i];
    } else {
      reinterpret_cast<uint16_t*>(address)[i] = half_word(words.word, i);
    }
  }
}

__device__ __forceinline__ float from_half(uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}

__device__ __forceinline__ float from_bfloat16(uint16_t bits) {
  return float_of(uint32_t{bits} << 16);
}

__device__ __forceinline__ void widen_all(const Words& words, DType dtype, float (&out)[kLane]) {
  switch (dtype) {
    case DType::kFloat16:
#pragma unroll
      for (int i = 0; i < kLane; ++i) out[i] = from_half(half_word(words.word, i));
      return;
    case DType::kBFloat16:
#pragma unroll
      for (int i = 0; i < kLane; ++i) out[i] = from_bfloat16(half_word(words.word, i));
      return;
    default:
#pragma unroll
      for (int i = 0; i < kLane; ++i) out[i] = float_of(words.word[i]);
  }
}

}  // namespace
}  // namespace clipfast::adamw
