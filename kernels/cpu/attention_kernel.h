// What an attention kernel is given: the geometry of one call, and the tiles of rows it is cut
// into.
#pragma once

#include <cstddef>
#include <cstdint>

namespace verbatim::kernels::cpu {

inline constexpr int kAttentionBlock = 64;     // positions of one online-softmax step
inline constexpr int kAttentionCut = 256;      // positions between joins of the strong policies
inline constexpr int kAttentionTileRows = 48;  // rows (position, query head) of one tile at most
inline constexpr int kAttentionMaxHeadDim = 256;

struct AttentionCall {
  const std::byte* pages = nullptr;  // K of page 0, kv head 0 of the layer
  int64_t page_bytes = 0;
  int64_t head_bytes = 0;
  int64_t v_offset = 0;  // elements from K to V of the same page and head
  int64_t v_stride = 0;  // elements; a multiple of 16
  int64_t page_tokens = 0;
  int64_t head_dim = 0;
  bool bf16_pages = false;
  int64_t heads_per_kv = 0;
  float scale = 1.0f;
  const float* q = nullptr;
  int64_t q_stride = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
  bool strong = true;         // cuts of 256 positions and the contract's arithmetic
  bool round_output = false;  // y rounded to bf16 values
};

// Consecutive rows of one span and kv head. Row r, counted from the span's first position with the
// heads of one position side by side, is position first_position + r / heads_per_kv and query head
// kv_head · heads_per_kv + r % heads_per_kv.
struct AttentionTile {
  const int32_t* pages = nullptr;
  int64_t first_row = 0;  // batch row of the span's first position
  int64_t first_position = 0;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t kv_head = 0;
};

// One visible stretch of the KV axis for all rows of a tile, computed apart: softmax maximum and
// sum per row, then unnormalised outputs.
constexpr int64_t AttentionStateElements(int64_t rows, int64_t v_stride) {
  return rows * (2 + v_stride);
}

// next_tile and next_begin name the block that the thread computes afterwards, so that its pages
// are on their way; null when there is none.
struct AttentionKernel {
  // y of every row of the tile.
  void (*whole)(const AttentionCall& call, const AttentionTile& tile,
                const AttentionTile* next_tile, int64_t next_begin);
  // The state of positions [begin, end), begin a multiple of the block; rows that see none of them
  // are left unset. One cut at most for the strong policies.
  void (*piece)(const AttentionCall& call, const AttentionTile& tile, int64_t begin, int64_t end,
                const AttentionTile* next_tile, int64_t next_begin, float* state);
  // y from `count` states that lie state_elements apart; state i began at begins[i], ascending,
  // begins[0] = 0.
  void (*join)(const AttentionCall& call, const AttentionTile& tile, const float* states,
               int64_t state_elements, const int64_t* begins, int64_t count);
};

namespace isa_scalar {
AttentionKernel GetAttentionKernel();
}
namespace isa_avx2 {
AttentionKernel GetAttentionKernel();
}
namespace isa_avx512 {
AttentionKernel GetAttentionKernel();
}

}  // namespace verbatim::kernels::cpu
