// The vocabulary passes of sampling, once per instruction set; only for sampling.cc.
//
// Tokens are ordered by (logit descending, id ascending). The order of logits is that of a signed
// 32-bit key with −0 = +0. No result depends on the instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/isa.h"

namespace verbatim::kernels::cpu {

inline constexpr int32_t kPositiveInfinityKey = 0x7f800000;
inline constexpr int32_t kNegativeInfinityKey = static_cast<int32_t>(0x807fffffu);

struct RowScan {
  uint64_t fingerprint_a, fingerprint_b;  // zero when not asked for
  int32_t max_key;
  int32_t second_key;  // of the second token in order; INT32_MIN for a row of one
  int32_t min_key;
  int32_t argmax;  // lowest id among the greatest
};

// Position in the order of tokens as one integer: greater comes first.
//   (key with its sign bit flipped) << 32 | (0xffffffff − id)
using TokenOrder = uint64_t;

struct SamplingKernels {
  void (*scan)(const float* x, int64_t n, bool fingerprint, RowScan* result);
  // y = x / divisor.
  void (*divide)(const float* x, int64_t n, float divisor, float* y);
  // The sum of floor(exp(x − max) · 2^40); exp(x − max) also goes to `weights` unless null. max is
  // finite.
  uint64_t (*weigh)(const float* x, int64_t n, float max, float* weights);
  // −inf for every token that comes after (key, id) in the order.
  void (*keep_through)(float* z, int64_t n, int32_t key, int32_t id);
  // −inf for every token with exp(z − max) < least.
  void (*keep_weight)(float* z, int64_t n, float max, float least);
  // How many tokens come before (key, id).
  int64_t (*count_before)(const float* x, int64_t n, int32_t key, int32_t id);
  // The first min(k, n) tokens, as a heap whose least is heap[0].
  void (*collect_top)(const float* x, int64_t n, int64_t k, TokenOrder* heap);
  // The ids, ascending, of all tokens with z >= least; how many. `ids` has room for n.
  int64_t (*collect_from)(const float* z, int64_t n, float least, int32_t* ids);
  // The argmax of the Gumbel scores; z has a finite element, the greatest being at `argmax`.
  int32_t (*draw)(const float* z, int64_t n, int32_t argmax, uint64_t seed, uint32_t position,
                  uint32_t sample_index);
};

namespace isa_scalar {
const SamplingKernels& GetSamplingKernels();
}
namespace isa_avx2 {
const SamplingKernels& GetSamplingKernels();
}
namespace isa_avx512 {
const SamplingKernels& GetSamplingKernels();
}

}  // namespace verbatim::kernels::cpu
