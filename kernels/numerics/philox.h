// The random words of sampling: Philox4x32-10, one word for each (seed, position, sample, token).
#pragma once

#include <array>
#include <cstdint>

namespace verbatim::numerics {

// The generator's constants (J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// 2011), for the vectorised evaluation in the kernels.
namespace philox {
inline constexpr uint32_t kMul0 = 0xD2511F53;
inline constexpr uint32_t kMul1 = 0xCD9E8D57;
inline constexpr uint32_t kWeyl0 = 0x9E3779B9;
inline constexpr uint32_t kWeyl1 = 0xBB67AE85;
inline constexpr int kRounds = 10;
}  // namespace philox

// The four words of tokens 4 · block … 4 · block + 3: counter (block, position, sample_index, 0),
// key (low half of the seed, high half). Computed by Random123.
std::array<uint32_t, 4> PhiloxBlock(uint64_t seed, uint32_t position, uint32_t sample_index,
                                    uint32_t block);

// Word token % 4 of block token / 4.
uint32_t PhiloxWord(uint64_t seed, uint32_t position, uint32_t sample_index, uint32_t token);

}  // namespace verbatim::numerics
