// Random words through Random123.
#include "kernels/numerics/philox.h"

#include <Random123/philox.h>

namespace verbatim::numerics {

std::array<uint32_t, 4> PhiloxBlock(uint64_t seed, uint32_t position, uint32_t sample_index,
                                    uint32_t block) {
  const r123::Philox4x32::ctr_type counter = {{block, position, sample_index, 0}};
  const r123::Philox4x32::key_type key = {
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}};
  const r123::Philox4x32::ctr_type words = r123::Philox4x32()(counter, key);
  return {words[0], words[1], words[2], words[3]};
}

uint32_t PhiloxWord(uint64_t seed, uint32_t position, uint32_t sample_index, uint32_t token) {
  return PhiloxBlock(seed, position, sample_index, token / 4)[token % 4];
}

}  // namespace verbatim::numerics
