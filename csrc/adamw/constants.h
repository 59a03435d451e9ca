// Numbers of AdamW that C++, CUDA and Python must agree on. A test compares them.
#pragma once

#include <cstdint>

namespace clipfast::adamw {

// Elements that share one scale, and that one warp or one pass of the CPU takes.
constexpr int kBlock = 256;
// Elements that one draw of Philox serves: 128 bits, 16 each.
constexpr int kDraw = 8;

// Philox4x32-7 of Salmon et al. 2011: 7 rounds are the fewest that pass every test of BigCrush.
constexpr int kRounds = 7;
// Its multipliers, of counter words 0 and 2.
constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
// What its key words grow by in each round.
constexpr uint32_t kPhiloxKeyStep0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxKeyStep1 = 0xBB67AE85u;

// A draw's 16 bits, times an odd number of the purpose, round for that purpose; element.h says why.
constexpr uint32_t kFirstMomentMultiplier = 1;
constexpr uint32_t kSecondMomentMultiplier = 0x1663u;
constexpr uint32_t kWeightMultiplier = 0x2F8Fu;

// The 16 bits that, for every purpose, round to the nearest instead (ties away from zero).
constexpr uint32_t kNearest = 0x8000;

// A block's largest magnitude is scaled into [2^14, 2^15), as high in fp16 as rounding up allows.
constexpr int kTopExponent = 14;
// Exponents of blocks: they fit 8 bits, and their scales are normal float32 numbers.
constexpr int kSmallestExponent = -112;
constexpr int kLargestExponent = 127;

}  // namespace clipfast::adamw
