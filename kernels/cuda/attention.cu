// Paged attention for prefill and decode: one block a tile of queries of one KV head, 256 positions
// (a cut of the contract) at a time.
//
// Scores: a thread a position, K straight from its page (16 bytes a lane, neighbouring positions
// side by side), one FMA chain a query. Softmax: a warp a query, over absolute blocks of 64.
// Outputs: a thread four columns of V and some queries, ascending positions. A decode step may give
// every cut a block of its own and fold afterwards; the arithmetic is the same.
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/shared_memory.h"
#include "kernels/cuda/tree.cuh"
#include "kernels/numerics/bf16.h"
#include "kernels/numerics/elementary.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kCut = 256;
constexpr int kBlock = 64;
constexpr int kThreads = kCut;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocksPerCut = kCut / kBlock;
constexpr int kLeaf = static_cast<int>(numerics::kChunkLength);
constexpr int kMaxHeadDim = 256;

__device__ __forceinline__ int64_t LeastOf(int64_t a, int64_t b) { return a < b ? a : b; }

__device__ __forceinline__ float Low(uint32_t pair) {
  const uint32_t bits = pair << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
__device__ __forceinline__ float High(uint32_t pair) {
  const uint32_t bits = pair & 0xffff0000u;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// 16 bytes of K as floats.
template <class T>
struct Segment;
template <>
struct Segment<float> {
  static constexpr int kElements = 4;
  static __device__ __forceinline__ void Load(const float* p, float (&out)[4]) {
    const float4 v = *reinterpret_cast<const float4*>(p);
    out[0] = v.x;
    out[1] = v.y;
    out[2] = v.z;
    out[3] = v.w;
  }
};
template <>
struct Segment<uint16_t> {
  static constexpr int kElements = 8;
  static __device__ __forceinline__ void Load(const uint16_t* p, float (&out)[8]) {
    const uint4 v = *reinterpret_cast<const uint4*>(p);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = Low(words[i]);
      out[2 * i + 1] = High(words[i]);
    }
  }
};

// Four neighbouring columns of V.
__device__ __forceinline__ void LoadFour(const float* p, float (&out)[4]) {
  Segment<float>::Load(p, out);
}
__device__ __forceinline__ void LoadFour(const uint16_t* p, float (&out)[4]) {
  const uint2 v = *reinterpret_cast<const uint2*>(p);
  out[0] = Low(v.x);
  out[1] = High(v.x);
  out[2] = Low(v.y);
  out[3] = High(v.y);
}

// Shared memory, in floats.
template <int kQueries>
struct SharedLayout {
  static constexpr int kScores = 0;                                   // [kQueries][kCut]
  static constexpr int kAlphas = kQueries * kCut;                     // [kQueries][kBlocksPerCut]
  static constexpr int kMaxima = kAlphas + kQueries * kBlocksPerCut;  // [kQueries]
  static constexpr int kSums = kMaxima + kQueries;                    // [kQueries]
  static constexpr int kQuery = kSums + kQueries;                     // [kQueries][head_dim to 8]
};

// Replaces the visible scores of a query's cut by their weights; its maximum and sum, and what its
// output must be multiplied by before each block. One warp; `visible` positions of the cut.
__device__ __forceinline__ void SoftmaxCut(float* scores, int visible, int lane, float* alphas,
                                           float* maximum_out, float* sum_out) {
  float m = 0.0f, l = 0.0f;
  for (int block = 0; block * kBlock < visible; ++block) {
    const int n = visible - block * kBlock < kBlock ? visible - block * kBlock : kBlock;
    float* s = scores + block * kBlock;
    const bool low = lane < n, high = lane + 32 < n;
    const float s0 = low ? s[lane] : 0.0f, s1 = high ? s[lane + 32] : 0.0f;
    // By comparison, so that NaN is passed over.
    float greatest = -__builtin_inff();
    if (low && s0 > greatest) greatest = s0;
    if (high && s1 > greatest) greatest = s1;
    for (int half = 16; half > 0; half /= 2) {
      const float other = ShuffleXor(greatest, half);
      if (other > greatest) greatest = other;
    }
    const bool first = block == 0;
    if (!first && m > greatest) greatest = m;
    const float p0 = low ? numerics::ExpF(s0 - greatest) : 0.0f;
    const float p1 = high ? numerics::ExpF(s1 - greatest) : 0.0f;
    if (low) s[lane] = p0;
    if (high) s[lane + 32] = p1;
    // +0 + p is p: no weight is −0.
    const float sum = FoldLanes(p0 + p1);
    float alpha = 1.0f;
    if (first) {
      l = sum;
    } else {
      if (m != greatest) alpha = numerics::ExpF(m - greatest);
      l = l * alpha + sum;
    }
    m = greatest;
    if (lane == 0) alphas[block] = alpha;
  }
  if (lane == 0) {
    *maximum_out = m;
    *sum_out = l;
  }
}

// A query's running result: maximum, sum, and four columns of the output.
struct Running {
  float m, l;
  float o[4];
};

// The ascending fold of cuts.
__device__ __forceinline__ void Join(Running& total, const Running& cut) {
  const float m = cut.m > total.m ? cut.m : total.m;
  const float a = numerics::ExpF(total.m - m);
  const float b = numerics::ExpF(cut.m - m);
  total.m = m;
  total.l = total.l * a + cut.l * b;
#pragma unroll
  for (int i = 0; i < 4; ++i) total.o[i] = total.o[i] * a + cut.o[i] * b;
}

// kColumns threads, four columns each, cover head_dim; the block's other threads take other
// queries.
template <class T, int kQueries, int kColumns>
__global__ void __launch_bounds__(kThreads) AttentionKernel(AttentionArgs args) {
  using L = SharedLayout<kQueries>;
  constexpr int kTeams = kThreads / kColumns;
  constexpr int kOwn = kQueries > kTeams ? kQueries / kTeams : 1;  // queries of a thread
  VERBATIM_SHARED_MEMORY(bytes);
  float* shared = reinterpret_cast<float*>(bytes);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const KvLayout& layout = args.layout;
  const int head_dim = static_cast<int>(layout.head_dim);
  const int q_stride = (head_dim + 7) / 8 * 8;
  const AttentionTile tile = args.tiles[blockIdx.x];
  if (tile.num_queries == 0) return;
  const int64_t kv_head = blockIdx.y;
  const int32_t* pages = args.pages + tile.first_page;
  const int64_t heads_per_kv = args.heads_per_kv;

  // Positions that query i sees, counted from 0.
  const auto visible_of = [&](int i) -> int64_t {
    return tile.first_position + (tile.first_query + i) / heads_per_kv + 1;
  };
  const auto row_of = [&](int i) -> int64_t {
    return tile.first_row + (tile.first_query + i) / heads_per_kv;
  };
  const auto head_of = [&](int i) -> int64_t {
    return kv_head * heads_per_kv + (tile.first_query + i) % heads_per_kv;
  };
  const int64_t longest = visible_of(tile.num_queries - 1);
  const int64_t cuts = (longest + kCut - 1) / kCut;
  const bool split = args.partials != nullptr;
  const int64_t first_cut = split ? blockIdx.z : 0;
  const int64_t last_cut = split ? LeastOf(first_cut + 1, cuts) : cuts;
  if (first_cut >= cuts) return;

  for (int i = thread; i < kQueries * q_stride; i += kThreads) {
    const int query = i / q_stride, d = i % q_stride;
    const bool exists = query < tile.num_queries && d < head_dim;
    shared[L::kQuery + i] =
        exists ? args.q[row_of(query) * args.q_stride + head_of(query) * head_dim + d] : 0.0f;
  }
  SyncThreads();

  const int column = thread % kColumns * 4, team = thread / kColumns;
  Running totals[kOwn];
  for (int64_t cut = first_cut; cut < last_cut; ++cut) {
    const int64_t cut_start = cut * kCut;
    const int cut_length = static_cast<int>(LeastOf(kCut, longest - cut_start));
    // Scores of this thread's position.
    if (thread < cut_length) {
      const int64_t position = cut_start + thread;
      const T* key = static_cast<const T*>(layout.data) +
                     layout.HeadOffset(args.layer, pages[position / layout.page_tokens], kv_head) +
                     position % layout.page_tokens * Segment<T>::kElements;
      const int64_t step = layout.page_tokens * Segment<T>::kElements;
      float dots[kQueries];
      for (int leaf = 0; leaf < head_dim; leaf += kLeaf) {
        const int end = head_dim < leaf + kLeaf ? head_dim : leaf + kLeaf;
        float sums[kQueries];
#pragma unroll
        for (int i = 0; i < kQueries; ++i) sums[i] = 0.0f;
        for (int d = leaf; d < end; d += Segment<T>::kElements, key += step) {
          float k[Segment<T>::kElements];
          Segment<T>::Load(key, k);
          const int count = end - d < Segment<T>::kElements ? end - d : Segment<T>::kElements;
#pragma unroll
          for (int i = 0; i < kQueries; ++i) {
            const float* q = shared + L::kQuery + i * q_stride + d;
#pragma unroll
            for (int e = 0; e < Segment<T>::kElements; e += 4) {
              const float4 four = *reinterpret_cast<const float4*>(q + e);
              if (e < count) sums[i] = Fma(four.x, k[e], sums[i]);
              if (e + 1 < count) sums[i] = Fma(four.y, k[e + 1], sums[i]);
              if (e + 2 < count) sums[i] = Fma(four.z, k[e + 2], sums[i]);
              if (e + 3 < count) sums[i] = Fma(four.w, k[e + 3], sums[i]);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kQueries; ++i) dots[i] = leaf == 0 ? sums[i] : dots[i] + sums[i];
      }
#pragma unroll
      for (int i = 0; i < kQueries; ++i) {
        shared[L::kScores + i * kCut + thread] = dots[i] * args.scale;
      }
    }
    SyncThreads();
    for (int i = warp; i < tile.num_queries; i += kWarps) {
      const int visible = static_cast<int>(LeastOf(kCut, visible_of(i) - cut_start));
      if (visible <= 0) continue;
      SoftmaxCut(shared + L::kScores + i * kCut, visible, lane,
                 shared + L::kAlphas + i * kBlocksPerCut, shared + L::kMaxima + i,
                 shared + L::kSums + i);
    }
    SyncThreads();

    Running own[kOwn];
    int visible[kOwn];
    int most = 0;
#pragma unroll
    for (int u = 0; u < kOwn; ++u) {
      const int i = team + u * kTeams;
      const bool exists = i < tile.num_queries && column < head_dim;
      const int64_t seen = exists ? LeastOf(kCut, visible_of(i) - cut_start) : 0;
      visible[u] = seen > 0 ? static_cast<int>(seen) : 0;
      if (visible[u] > most) most = visible[u];
#pragma unroll
      for (int e = 0; e < 4; ++e) own[u].o[e] = 0.0f;
    }
    for (int block = 0; block * kBlock < most; ++block) {
      if (block > 0) {
#pragma unroll
        for (int u = 0; u < kOwn; ++u) {
          if (block * kBlock >= visible[u]) continue;
          const float alpha = shared[L::kAlphas + (team + u * kTeams) * kBlocksPerCut + block];
#pragma unroll
          for (int e = 0; e < 4; ++e) own[u].o[e] = own[u].o[e] * alpha;
        }
      }
      const int end = most < (block + 1) * kBlock ? most : (block + 1) * kBlock;
      for (int j = block * kBlock; j < end;) {
        // Positions of one page lie side by side.
        const int64_t position = cut_start + j;
        const int64_t offset = position % layout.page_tokens;
        const T* value =
            static_cast<const T*>(layout.data) +
            layout.HeadOffset(args.layer, pages[position / layout.page_tokens], kv_head) +
            layout.v_offset() + offset * layout.v_stride() + column;
        const int stop = static_cast<int>(LeastOf(end, j + (layout.page_tokens - offset)));
#pragma unroll 4
        for (; j < stop; ++j, value += layout.v_stride()) {
          float v[4];
          LoadFour(value, v);
#pragma unroll
          for (int u = 0; u < kOwn; ++u) {
            if (j >= visible[u]) continue;
            const float p = shared[L::kScores + (team + u * kTeams) * kCut + j];
#pragma unroll
            for (int e = 0; e < 4; ++e) own[u].o[e] = Fma(p, v[e], own[u].o[e]);
          }
        }
      }
    }
#pragma unroll
    for (int u = 0; u < kOwn; ++u) {
      if (visible[u] == 0) continue;
      const int i = team + u * kTeams;
      own[u].m = shared[L::kMaxima + i];
      own[u].l = shared[L::kSums + i];
      if (split) {
        float* partial =
            args.partials +
            ((row_of(i) * args.num_heads + head_of(i)) * args.max_cuts + cut) * (head_dim + 2);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (column + e < head_dim) partial[2 + column + e] = own[u].o[e];
        }
        if (column == 0) {
          partial[0] = own[u].m;
          partial[1] = own[u].l;
        }
      } else if (cut == 0) {
        totals[u] = own[u];
      } else {
        Join(totals[u], own[u]);
      }
    }
    SyncThreads();  // scores are free again
  }
  if (split) return;
#pragma unroll
  for (int u = 0; u < kOwn; ++u) {
    const int i = team + u * kTeams;
    if (i >= tile.num_queries || column >= head_dim) continue;
    float* y = args.y + row_of(i) * args.y_stride + head_of(i) * head_dim + column;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (column + e >= head_dim) continue;
      const float value = totals[u].o[e] / totals[u].l;
      y[e] = args.round ? numerics::RoundToBf16(value) : value;
    }
  }
}

// Folds a row's cuts in ascending order; a block a row and head.
__global__ void FoldKernel(AttentionArgs args) {
  const int64_t row = blockIdx.x, head = blockIdx.y;
  const int64_t cuts = args.row_cuts[row];
  const int64_t head_dim = args.layout.head_dim;
  if (cuts == 0) return;
  const float* partial =
      args.partials + (row * args.num_heads + head) * args.max_cuts * (head_dim + 2);
  for (int64_t d = threadIdx.x; d < head_dim; d += blockDim.x) {
    float m = partial[0], l = partial[1], o = partial[2 + d];
    for (int64_t cut = 1; cut < cuts; ++cut) {
      const float* next = partial + cut * (head_dim + 2);
      const float top = next[0] > m ? next[0] : m;
      const float a = numerics::ExpF(m - top);
      const float b = numerics::ExpF(next[0] - top);
      m = top;
      l = l * a + next[1] * b;
      o = o * a + next[2 + d] * b;
    }
    const float value = o / l;
    args.y[row * args.y_stride + head * head_dim + d] =
        args.round ? numerics::RoundToBf16(value) : value;
  }
}

template <int kQueries>
size_t SharedBytes(int64_t head_dim) {
  const int64_t q_stride = (head_dim + 7) / 8 * 8;
  return static_cast<size_t>(SharedLayout<kQueries>::kQuery + kQueries * q_stride) * sizeof(float);
}

template <class T, int kQueries, int kColumns>
int LaunchTiles(const AttentionArgs& args, Stream stream) {
  const LaunchShape shape{
      dim3(static_cast<unsigned int>(args.num_tiles),
           static_cast<unsigned int>(args.layout.num_kv_heads),
           static_cast<unsigned int>(args.partials != nullptr ? args.max_cuts : 1)),
      dim3(kThreads), SharedBytes<kQueries>(args.layout.head_dim)};
  return Launch(AttentionKernel<T, kQueries, kColumns>, shape, stream, args);
}

template <class T, int kQueries>
int LaunchColumns(const AttentionArgs& args, Stream stream) {
  if (args.layout.head_dim <= 64) return LaunchTiles<T, kQueries, 16>(args, stream);
  if (args.layout.head_dim <= 128) return LaunchTiles<T, kQueries, 32>(args, stream);
  return LaunchTiles<T, kQueries, 64>(args, stream);
}

template <class T>
void AddNeeds(SharedNeeds* needs) {
  constexpr const char* kName = "attention of 32 queries";
  needs->push_back({kName, FunctionOf(AttentionKernel<T, 32, 16>), SharedBytes<32>(64)});
  needs->push_back({kName, FunctionOf(AttentionKernel<T, 32, 32>), SharedBytes<32>(128)});
  needs->push_back({kName, FunctionOf(AttentionKernel<T, 32, 64>), SharedBytes<32>(kMaxHeadDim)});
}

}  // namespace

SharedNeeds AttentionNeeds() {
  SharedNeeds needs;
  AddNeeds<uint16_t>(&needs);
  AddNeeds<float>(&needs);
  return needs;
}

int LaunchAttention(const AttentionArgs& args, Stream stream) {
  int error = 0;
  if (args.layout.bf16) {
    error = args.tile_queries <= 8 ? LaunchColumns<uint16_t, 8>(args, stream)
                                   : LaunchColumns<uint16_t, 32>(args, stream);
  } else {
    error = args.tile_queries <= 8 ? LaunchColumns<float, 8>(args, stream)
                                   : LaunchColumns<float, 32>(args, stream);
  }
  if (error != 0 || args.partials == nullptr) return error;
  return LaunchAttentionFold(args, stream);
}

int LaunchAttentionFold(const AttentionArgs& args, Stream stream) {
  return Launch(
      FoldKernel,
      {dim3(static_cast<unsigned int>(args.batch_rows), static_cast<unsigned int>(args.num_heads)),
       dim3(kMaxHeadDim / 2), 0},
      stream, args);
}

}  // namespace verbatim::kernels::cuda
