// Rotary position embedding, in place on the query and key heads of a fused QKV buffer.
//
// For a pair (a, b) at frequency f: a' = fma(a, cos, -(b · sin)), b' = fma(b, cos, a · sin). cos
// and sin come from a table built on the host (kernels/numerics/rope_table.h), so no device
// evaluates a trigonometric function.
#pragma once

#include <cstdint>

#include "kernels/ops/numeric_mode.h"

namespace verbatim::kernels {

struct RopeParams {
  NumericMode mode;
  float* qkv =
      nullptr;  // [tokens, row_stride]: query heads first, then key heads, then value heads
  int64_t row_stride = 0;  // elements
  int64_t tokens = 0;
  int64_t num_heads = 0;  // query heads
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  bool interleaved = false;            // pairs (2i, 2i+1) instead of (i, i + head_dim/2)
  const int32_t* positions = nullptr;  // [tokens], each in [0, table rows)
  const float* cos_table = nullptr;    // [max_position, head_dim / 2]
  const float* sin_table = nullptr;    // [max_position, head_dim / 2]
};

}  // namespace verbatim::kernels
