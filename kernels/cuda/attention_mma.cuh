// Attention on the matrix units: what one warp does with 16 queries and one block of 64 positions.
//
// Queries, keys, weights and values are bf16, accumulators fp32. A query's arithmetic in a block,
// `seen` of whose positions it sees:
//   score = (chain of m16n8k16 over head_dim in ascending steps of 16, from +0) · scale;
//   greatest = max of the visible scores and of the blocks of the cut before;
//   p = exp(score − greatest), rounded to bf16 for the product, as it is for the sum;
//   sum: position i belongs to lane (i % 8) / 2 of four; a lane adds its even positions and its odd
//     ones, each in ascending order from +0, then the two; lanes join as (0 + 1) + (2 + 3);
//   value = chain of m16n8k16 over positions in ascending steps of 16, from +0, for the steps that
//     hold a visible position; weights and values of positions that are not visible are +0.
// Then o = o · alpha + value and l = l · alpha + sum, two roundings each; the first block of a cut
// takes value and sum as they are. None of it depends on the row of the instruction that a query
// has, or on the other rows.
//
// Fragments are those of mma.sync.m16n8k16: lane l holds rows l / 4 and l / 4 + 8, and of every
// eight columns 2 (l % 4) and the next.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launchers.h"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/elementary.h"

namespace verbatim::kernels::cuda::attention_mma {

inline constexpr int kCut = 256;
inline constexpr int kBlock = 64;
inline constexpr int kBlocksPerCut = kCut / kBlock;
inline constexpr int kRows = 16;  // queries of a warp
inline constexpr int kStep = 16;  // of an instruction's reduction
inline constexpr int kThreads = 128;

// Shared memory of keys is [segment of 8 columns][position] 16 bytes, of values [position]
// [kValueSegments] 16 bytes: eight rows of a matrix load meet no bank twice.
template <int kDim>
struct Shape {
  static constexpr int kSteps = kDim / kStep;
  static constexpr int kSegments = kDim / 8;
  static constexpr int kValueSegments = kSegments | 1;
};

// Outputs of wide heads do not fit into a warp's registers beside their queries, nor their values
// into the shared memory that every device has. So half of their columns are computed at a time,
// each time from all scores.
template <int kDim>
struct Parts {
  static constexpr int kCount = kDim > 128 ? 2 : 1;
  static constexpr int kColumns = kDim / kCount;
};

// The queries of a tile and what they see.
struct Queries {
  AttentionTile tile;
  int64_t heads_per_kv, kv_head;

  __device__ __forceinline__ int Token(int i) const {
    return (tile.first_query + i) / static_cast<int>(heads_per_kv);
  }
  // Positions that query i sees, counted from 0; 0 for a query that does not exist.
  __device__ __forceinline__ int Visible(int i) const {
    return i < tile.num_queries ? tile.first_position + Token(i) + 1 : 0;
  }
  __device__ __forceinline__ int Longest() const { return Visible(tile.num_queries - 1); }
  __device__ __forceinline__ int64_t Row(int i) const { return tile.first_row + Token(i); }
  __device__ __forceinline__ int64_t Head(int i) const {
    return kv_head * heads_per_kv + (tile.first_query + i) % heads_per_kv;
  }
};

// How much of a block the rows of a warp see: `own` the two rows of the lane, `least` and `most`
// the first and the last row that exist. Queries ascend in position, so every number between least
// and most is some row's.
struct Seen {
  int own[2];
  int least, most;
};
__device__ __forceinline__ int SeenOf(int visible, int start) {
  const int seen = visible - start;
  return seen < 0 ? 0 : seen < kBlock ? seen : kBlock;
}

// The lane's part of 16 queries, from `first` of the tile on, rounded to bf16; +0 where there is
// none.
template <int kDim>
__device__ __forceinline__ void LoadQueries(const AttentionArgs& args, const Queries& queries,
                                            int first, int lane,
                                            uint32_t (&q)[Shape<kDim>::kSteps][4]) {
  const int head_dim = static_cast<int>(args.layout.head_dim);
  const float* rows[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int i = first + lane / 4 + 8 * r;
    rows[r] = i < queries.tile.num_queries
                  ? args.q + queries.Row(i) * args.q_stride + queries.Head(i) * head_dim
                  : nullptr;
  }
#pragma unroll
  for (int step = 0; step < Shape<kDim>::kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int d = kStep * step + 8 * (i / 2) + 2 * (lane % 4);
      const float* row = rows[i % 2];
      const bool exists = row != nullptr && d < head_dim;
      q[step][i] = exists ? PackBf16(row[d], row[d + 1]) : 0u;
    }
  }
}

// Q · K for 16 positions, whose first is at `keys`; `positions` of them to a segment. query(step,
// q) gives the queries' operand of a step.
template <int kDim, class Query>
__device__ __forceinline__ void Dots(Query query, const unsigned char* keys, int positions,
                                     int lane, float (&low)[4], float (&high)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) low[i] = high[i] = 0.0f;
  const unsigned char* row = keys + (lane / 8 % 2 * positions + lane / 16 * 8 + lane % 8) * 16;
#pragma unroll
  for (int step = 0; step < Shape<kDim>::kSteps; ++step) {
    uint32_t q[4], k[4];
    query(step, q);
    LoadMatrixX4(k, row + 2 * step * positions * 16);
    MmaBf16(low, q, {k[0], k[1]});
    MmaBf16(high, q, {k[2], k[3]});
  }
}

// Scales the dot products; the greatest visible score of each of the lane's rows, −inf where there
// is none. By comparison, so that NaN is passed over.
__device__ __forceinline__ void ScaleAndMaximum(float (&s)[kBlock / 8][4], const Seen& seen,
                                                float scale, int lane, float (&greatest)[2]) {
  greatest[0] = greatest[1] = -__builtin_inff();
#pragma unroll
  for (int j = 0; j < kBlock / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int position = 8 * j + 2 * (lane % 4) + i % 2;
      s[j][i] = s[j][i] * scale;
      if (position < seen.own[i / 2] && s[j][i] > greatest[i / 2]) greatest[i / 2] = s[j][i];
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int half = 1; half < 4; half *= 2) {
      const float other = ShuffleXor(greatest[r], half);
      if (other > greatest[r]) greatest[r] = other;
    }
  }
}

// The greatest score of a cut up to this block.
__device__ __forceinline__ float RunningMaximum(bool first, float before, float block) {
  return !first && before > block ? before : block;
}
// What sums of the blocks before are multiplied by.
__device__ __forceinline__ float Alpha(float before, float now) {
  return before != now ? numerics::ExpF(before - now) : 1.0f;
}

// Weights of the scores as operands of the second product, and their sums.
__device__ __forceinline__ void Weights(const float (&s)[kBlock / 8][4], const Seen& seen,
                                        const float (&greatest)[2], int lane,
                                        uint32_t (&p)[kBlock / kStep][4], float (&sum)[2]) {
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int j = 0; j < kBlock / 8; ++j) {
    float w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int position = 8 * j + 2 * (lane % 4) + i % 2;
      const float weight = numerics::ExpF(s[j][i] - greatest[i / 2]);
      w[i] = position < seen.own[i / 2] ? weight : 0.0f;
      sums[i] = sums[i] + w[i];  // + 0 changes nothing: no weight is −0
    }
    p[j / 2][j % 2 * 2] = PackBf16(w[0], w[1]);
    p[j / 2][j % 2 * 2 + 1] = PackBf16(w[2], w[3]);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float lanes = sums[2 * r] + sums[2 * r + 1];
#pragma unroll
    for (int half = 1; half < 4; half *= 2) lanes = lanes + ShuffleXor(lanes, half);
    sum[r] = lanes;
  }
}

// Values of positions that are not among the first `count` from this lane's pair on become +0.
__device__ __forceinline__ uint32_t KeepPositions(uint32_t pair, int count) {
  return count > 1 ? pair : count == 1 ? pair & 0xffffu : 0u;
}

// P · V for kColumns columns of rows of kDim: use(pair, values) takes columns 16 pair to 16 pair +
// 15 of the lane's rows. step_address(t) is where the first of them at position 16 t of the block
// lies in shared memory.
template <int kDim, int kColumns, class StepAddress, class Use>
__device__ __forceinline__ void WeightedValues(const uint32_t (&p)[kBlock / kStep][4],
                                               const Seen& seen, int lane, StepAddress step_address,
                                               Use use) {
  constexpr int kSteps = kBlock / kStep;
  const int lane_offset = (lane % 16 * Shape<kDim>::kValueSegments + lane / 16) * 16;
  if (seen.least == kBlock) {
#pragma unroll
    for (int pair = 0; pair < kColumns / 16; ++pair) {
      float values[2][4] = {};
#pragma unroll
      for (int t = 0; t < kSteps; ++t) {
        uint32_t v[4];
        LoadMatrixX4Transposed(v, step_address(t) + lane_offset + pair * 32);
        MmaBf16(values[0], p[t], {v[0], v[1]});
        MmaBf16(values[1], p[t], {v[2], v[3]});
      }
      use(pair, values);
    }
    return;
  }
  // Rows see different numbers of positions. What a row must not see must not reach it even as a
  // product with a zero weight (a NaN would), so each number gets instructions of its own.
  const int whole = seen.least / kStep;
#pragma unroll
  for (int pair = 0; pair < kColumns / 16; ++pair) {
    float shared[2][4] = {}, values[2][4] = {};
#pragma unroll
    for (int t = 0; t < kSteps; ++t) {
      if (t >= whole) continue;
      uint32_t v[4];
      LoadMatrixX4Transposed(v, step_address(t) + lane_offset + pair * 32);
      MmaBf16(shared[0], p[t], {v[0], v[1]});
      MmaBf16(shared[1], p[t], {v[2], v[3]});
    }
    for (int count = seen.least > 0 ? seen.least : 1; count <= seen.most; ++count) {
      float own[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        own[0][i] = shared[0][i];
        own[1][i] = shared[1][i];
      }
#pragma unroll
      for (int t = 0; t < kSteps; ++t) {
        if (t < whole || kStep * t >= count) continue;
        uint32_t v[4];
        LoadMatrixX4Transposed(v, step_address(t) + lane_offset + pair * 32);
        const int left = count - kStep * t - 2 * (lane % 4);
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = KeepPositions(v[i], left - 8 * (i % 2));
        MmaBf16(own[0], p[t], {v[0], v[1]});
        MmaBf16(own[1], p[t], {v[2], v[3]});
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (seen.own[i / 2] != count) continue;
        values[0][i] = own[0][i];
        values[1][i] = own[1][i];
      }
    }
    use(pair, values);
  }
}

// Where the tile's history lies.
struct History {
  const unsigned char* head;  // of page 0, in this layer
  int64_t page_bytes;         // from one page to the next
  const int32_t* pages;
  int page_tokens, page_shift;  // a power of two, and which
  int segments;                 // of a position that exist

  __device__ __forceinline__ History(const AttentionArgs& args, const Queries& queries)
      : head(static_cast<const unsigned char*>(args.layout.data) +
             2 * args.layout.HeadOffset(args.layer, 0, queries.kv_head)),
        page_bytes(2 * args.layout.num_kv_heads * args.layout.head_elements()),
        pages(args.pages + queries.tile.first_page),
        page_tokens(static_cast<int>(args.layout.page_tokens)),
        page_shift(PopCount(static_cast<uint32_t>(page_tokens) - 1u)),
        segments(static_cast<int>(args.layout.key_segments())) {}

  __device__ __forceinline__ const unsigned char* Key(int position, int segment) const {
    return head + pages[position >> page_shift] * page_bytes +
           ((segment << page_shift) + (position & (page_tokens - 1))) * 16;
  }
  __device__ __forceinline__ const unsigned char* Value(int position, int segment) const {
    return head + pages[position >> page_shift] * page_bytes +
           ((page_tokens + (position & (page_tokens - 1))) * segments + segment) * 16;
  }
};

// Starts copies of kPositions positions from `start` on, by kCount threads; +0 from `end` on.
template <int kDim, int kPositions, int kCount>
__device__ __forceinline__ void CopyKeys(const History& history, int start, int end, int thread,
                                         unsigned char* to) {
#pragma unroll 2
  for (int i = thread; i < Shape<kDim>::kSegments * kPositions; i += kCount) {
    const int position = start + i % kPositions, segment = i / kPositions;
    const bool exists = position < end && segment < history.segments;
    CopyAsync16(to + i * 16, exists ? history.Key(position, segment) : history.head,
                exists ? 16 : 0);
  }
}
// kColumns of them from `first_column` on.
template <int kColumns, int kPositions, int kCount>
__device__ __forceinline__ void CopyValues(const History& history, int start, int end,
                                           int first_column, int thread, unsigned char* to) {
  constexpr int kSegments = Shape<kColumns>::kSegments;
#pragma unroll 2
  for (int i = thread; i < kSegments * kPositions; i += kCount) {
    const int place = i / kSegments, segment = i % kSegments;
    const int of_row = first_column / 8 + segment;
    const bool exists = start + place < end && of_row < history.segments;
    CopyAsync16(to + (place * Shape<kColumns>::kValueSegments + segment) * 16,
                exists ? history.Value(start + place, of_row) : history.head, exists ? 16 : 0);
  }
}

// Calls run.operator()<kDim>() with the smallest kernel size that holds the heads.
template <class Run>
int ForHeadDim(int64_t head_dim, Run run) {
  if (head_dim <= 32) return run.template operator()<32>();
  if (head_dim <= 64) return run.template operator()<64>();
  if (head_dim <= 80) return run.template operator()<80>();
  if (head_dim <= 96) return run.template operator()<96>();
  if (head_dim <= 128) return run.template operator()<128>();
  return run.template operator()<256>();
}

// run<kDim>() for all of them.
template <class Run>
void ForHeadDims(Run run) {
  run.template operator()<32>();
  run.template operator()<64>();
  run.template operator()<80>();
  run.template operator()<96>();
  run.template operator()<128>();
  run.template operator()<256>();
}

}  // namespace verbatim::kernels::cuda::attention_mma
