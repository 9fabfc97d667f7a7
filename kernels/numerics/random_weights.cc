// Random weights through Random123.
#include "kernels/numerics/random_weights.h"

#include <Random123/philox.h>

namespace verbatim::numerics {

void MakeRandomWeights(const RandomWeights& weights, int64_t begin, int64_t count, uint16_t* out) {
  using Philox = r123::Philox4x32;
  const Philox::key_type key = {
      {static_cast<uint32_t>(weights.seed), static_cast<uint32_t>(weights.seed >> 32)}};
  const uint64_t start = static_cast<uint64_t>(weights.first + begin);
  const uint64_t end = start + static_cast<uint64_t>(count);
  for (uint64_t element = start; element < end;) {
    const uint64_t block = element / 4;
    const Philox::ctr_type words = Philox()(
        {{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
          static_cast<uint32_t>(weights.matrix), static_cast<uint32_t>(weights.matrix >> 32)}},
        key);
    do {
      *out++ = RandomWeight(words[element % 4]);
    } while (++element % 4 != 0 && element < end);
  }
}

}  // namespace verbatim::numerics
