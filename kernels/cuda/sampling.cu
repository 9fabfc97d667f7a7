// Sampling, one block a row: the passes over the vocabulary of kernels/ops/sampling.h.
//
// Every sum is of integers and every choice a maximum of (key, id) pairs, so the order in which
// threads meet does not matter. Sorting is avoided: the k-th token, or the one at which a mass is
// reached, is found by buckets of the distance from the maximum, then digit by digit in one bucket.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/sampling_args.h"
#include "kernels/numerics/gumbel.h"
#include "kernels/numerics/row_fingerprint.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
// Weights below 2^-40 are zero, so distances that matter to a mass end before 28.
constexpr int kBucketsPerUnit = 64;
constexpr int kBuckets = 28 * kBucketsPerUnit;  // the last also holds everything beyond
constexpr int kDigits = 256;
constexpr float kMinTemperature = 1e-5f;
constexpr int32_t kPositiveInfinityKey = 0x7f800000;
constexpr int32_t kNegativeInfinityKey = static_cast<int32_t>(0x807fffffu);

// Shared memory: histogram[kBuckets], then one value a warp, then a few words.
struct Shared {
  uint64_t histogram[kBuckets];
  uint64_t warps[kWarps];
  uint64_t found;
  uint64_t left;
  uint32_t count;
};

// An integer that orders as the floats do, −0 equal to +0.
__device__ __forceinline__ int32_t KeyOf(float x) {
  x = x + 0.0f;
  int32_t bits;
  memcpy(&bits, &x, 4);
  return bits ^ (bits < 0 ? 0x7fffffff : 0);
}
__device__ __forceinline__ float ValueOf(int32_t key) {
  const int32_t bits = key ^ (key < 0 ? 0x7fffffff : 0);
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
// Position in the order (logit descending, id ascending): greater comes first.
__device__ __forceinline__ uint64_t OrderOf(float x, int64_t id) {
  return static_cast<uint64_t>(static_cast<uint32_t>(KeyOf(x)) ^ 0x80000000u) << 32 |
         (0xffffffffu - static_cast<uint32_t>(id));
}
__device__ __forceinline__ int32_t KeyOfOrder(uint64_t order) {
  return static_cast<int32_t>(static_cast<uint32_t>(order >> 32) ^ 0x80000000u);
}
__device__ __forceinline__ int32_t IdOfOrder(uint64_t order) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(order));
}
__device__ __forceinline__ float NegativeInfinity() { return -__builtin_inff(); }

// The block's join of every thread's value, in every thread.
template <class Combine>
__device__ uint64_t BlockReduce(Shared* shared, uint64_t value, Combine combine) {
  for (int half = 16; half > 0; half /= 2) value = combine(value, ShuffleXor(value, half));
  if (threadIdx.x % 32 == 0) shared->warps[threadIdx.x / 32] = value;
  SyncThreads();
  value = shared->warps[0];
  for (int i = 1; i < kWarps; ++i) value = combine(value, shared->warps[i]);
  SyncThreads();
  return value;
}
__device__ uint64_t BlockSum(Shared* shared, uint64_t value) {
  return BlockReduce(shared, value, [](uint64_t a, uint64_t b) { return a + b; });
}
__device__ uint64_t BlockMax(Shared* shared, uint64_t value) {
  return BlockReduce(shared, value, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
}

struct Scan {
  uint64_t best;  // order of the first token
  int32_t max_key;
  int32_t second_key;  // of the second; INT32_MIN for a row of one
  int32_t min_key;

  __device__ bool Finite() const {
    return max_key < kPositiveInfinityKey && min_key >= kNegativeInfinityKey;
  }
};

__device__ Scan ScanRow(Shared* shared, const float* x, int64_t n) {
  uint64_t best = 0, second = 0, least = ~uint64_t{0};
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    const uint64_t order = OrderOf(x[i], i);
    if (order > best) {
      second = best;
      best = order;
    } else if (order > second) {
      second = order;
    }
    if (order < least) least = order;
  }
  Scan scan;
  scan.best = BlockMax(shared, best);
  // Orders are distinct: the second is the greatest of those that are not the best.
  scan.second_key = KeyOfOrder(BlockMax(shared, best == scan.best ? second : best));
  scan.min_key = KeyOfOrder(~BlockMax(shared, ~least));
  scan.max_key = KeyOfOrder(scan.best);
  return scan;
}

__device__ __forceinline__ uint64_t WeightOf(float x, float max) {
  return static_cast<uint64_t>(numerics::ExpF(x - max) * 0x1p40f);
}

// How a selection counts a token: each as one, or by its weight.
struct CountOne {
  __device__ uint64_t operator()(float) const { return 1; }
};
struct CountWeight {
  float max;
  __device__ uint64_t operator()(float x) const { return WeightOf(x, max); }
};

// Monotone in x: a greater x never has a higher bucket.
__device__ __forceinline__ int BucketOf(float x, float max) {
  const float distance = (max - x) * static_cast<float>(kBucketsPerUnit);
  return distance < static_cast<float>(kBuckets - 1) ? static_cast<int>(distance) : kBuckets - 1;
}

// The first warp finds, from the greatest bucket index down (`descending`) or up, where the running
// sum reaches target; every thread learns the bucket and what is left of the target before it. The
// last bucket is taken when no other reaches it.
__device__ int FindBucket(Shared* shared, int buckets, bool descending, uint64_t* target) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x < 32) {
    const int share = buckets / 32;
    uint64_t own = 0;
    for (int i = 0; i < share; ++i) {
      const int at = lane * share + i;
      own += shared->histogram[descending ? buckets - 1 - at : at];
    }
    uint64_t before = own;  // inclusive, then exclusive
    for (int delta = 1; delta < 32; delta *= 2) {
      const uint64_t other = ShuffleUp(before, delta);
      if (lane >= delta) before += other;
    }
    const uint64_t all = Shuffle(before, 31);
    before -= own;
    if (before < *target && *target <= before + own) {
      uint64_t left = *target - before;
      int at = lane * share;
      while (true) {
        const uint64_t mass = shared->histogram[descending ? buckets - 1 - at : at];
        if (left <= mass) break;
        left -= mass;
        ++at;
      }
      shared->found = static_cast<uint64_t>(at);
      shared->left = left;
    }
    if (all < *target && lane == 0) {
      shared->found = static_cast<uint64_t>(buckets - 1);
      shared->left = *target - all;
    }
  }
  SyncThreads();
  const int found = static_cast<int>(shared->found);
  *target = shared->left;
  SyncThreads();
  return descending ? buckets - 1 - found : found;
}

// The order of the token at which the running sum over tokens, first to last, reaches target. The
// sum over all tokens is at least target > 0; max is the greatest x.
template <class Count>
__device__ uint64_t SelectOrder(Shared* shared, const float* x, int64_t n, float max,
                                uint64_t target, Count count) {
  for (int i = static_cast<int>(threadIdx.x); i < kBuckets; i += kThreads) {
    shared->histogram[i] = 0;
  }
  SyncThreads();
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    // The last bucket is where the rest falls: most tokens, which need no counting here.
    const int bucket = BucketOf(x[i], max);
    if (bucket < kBuckets - 1) AtomicAdd(&shared->histogram[bucket], count(x[i]));
  }
  SyncThreads();
  const int bucket = FindBucket(shared, kBuckets, false, &target);
  uint64_t prefix = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    for (int i = static_cast<int>(threadIdx.x); i < kDigits; i += kThreads) {
      shared->histogram[i] = 0;
    }
    SyncThreads();
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      if (BucketOf(x[i], max) != bucket) continue;
      const uint64_t order = OrderOf(x[i], i);
      if (shift < 56 && order >> (shift + 8) != prefix) continue;
      AtomicAdd(&shared->histogram[order >> shift & (kDigits - 1)], count(x[i]));
    }
    SyncThreads();
    const int digit = FindBucket(shared, kDigits, true, &target);
    prefix = prefix << 8 | static_cast<uint64_t>(digit);
  }
  return prefix;
}

__device__ void KeepThrough(float* z, int64_t n, uint64_t last) {
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    if (OrderOf(z[i], i) < last) z[i] = NegativeInfinity();
  }
  SyncThreads();
}

// ceil(mantissa · 2^-shift · total) without rounding; the product is below 2^88.
__device__ uint64_t TopPTarget(uint32_t mantissa, int shift, uint64_t total) {
  if (shift >= 88) return 1;
  const uint64_t low = mantissa * total;
  const uint64_t high = MultiplyHigh(static_cast<uint64_t>(mantissa), total);
  if (shift == 0) return low;
  if (shift >= 64) {
    const uint64_t lost = shift == 64 ? low : low | (high & ((uint64_t{1} << (shift - 64)) - 1));
    return (shift == 64 ? high : high >> (shift - 64)) + (lost != 0 ? 1 : 0);
  }
  const uint64_t lost = low & ((uint64_t{1} << shift) - 1);
  return (high << (64 - shift) | low >> shift) + (lost != 0 ? 1 : 0);
}

// The token of the greatest Gumbel score, the lower id on ties; some z is finite.
__device__ int32_t Draw(Shared* shared, const float* z, int64_t n, const SampleRequest& request) {
  uint64_t best = 0;
  for (int64_t first = 4 * static_cast<int64_t>(threadIdx.x); first < n; first += 4 * kThreads) {
    bool possible = false;
    for (int r = 0; r < 4; ++r) {
      possible = possible || (first + r < n && z[first + r] != NegativeInfinity());
    }
    if (!possible) continue;
    uint32_t words[4] = {static_cast<uint32_t>(first / 4), request.position, request.sample_index,
                         0};
    Philox(request.seed, words);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if (first + r >= n || z[first + r] == NegativeInfinity()) continue;
      const uint64_t order = OrderOf(numerics::GumbelScoreF(z[first + r], words[r]), first + r);
      if (order > best) best = order;
    }
  }
  return IdOfOrder(BlockMax(shared, best));
}

// Bans, bias and penalties on a copy of the row. Tokens of one list are distinct.
__device__ void ApplyProcessors(const SampleArgs& args, const SampleRequest& request,
                                const float* raw, float* z) {
  for (int64_t i = threadIdx.x; i < args.vocab; i += kThreads) z[i] = raw[i];
  SyncThreads();
  // A token may be banned twice: one thread, so that no two write it at once.
  if (threadIdx.x == 0) {
    for (int i = 0; i < request.banned_count; ++i) {
      z[args.banned[request.banned_begin + i]] = NegativeInfinity();
    }
  }
  SyncThreads();
  for (int i = static_cast<int>(threadIdx.x); i < request.bias_count; i += kThreads) {
    const TokenBias bias = args.biases[request.bias_begin + i];
    z[bias.token] = z[bias.token] + bias.bias;
  }
  SyncThreads();
  for (int i = static_cast<int>(threadIdx.x); i < request.use_count; i += kThreads) {
    const TokenUse use = args.uses[request.use_begin + i];
    float logit = z[use.token];
    if (use.in_prompt + use.in_output > 0) {
      logit =
          logit > 0.0f ? logit / request.repetition_penalty : logit * request.repetition_penalty;
    }
    if (use.in_output > 0) {
      logit = logit - static_cast<float>(use.in_output) * request.frequency_penalty;
      logit = logit - request.presence_penalty;
    }
    z[use.token] = logit;
  }
  SyncThreads();
}

// The drawn token, −1 when none is possible; *finite becomes false where processing met NaN or
// +inf.
__device__ int32_t DrawToken(Shared* shared, const SampleArgs& args, const SampleRequest& request,
                             const float* raw, float* z, Scan scan, bool* finite) {
  const int64_t n = args.vocab;
  const float* logits = raw;
  if (request.banned_count > 0 || request.bias_count > 0 || request.use_count > 0) {
    ApplyProcessors(args, request, raw, z);
    logits = z;
    scan = ScanRow(shared, z, n);
    if (!scan.Finite()) {
      *finite = false;
      return -1;
    }
  }
  if (scan.max_key == kNegativeInfinityKey) return -1;
  if (request.temperature < kMinTemperature || request.top_k == 1) return IdOfOrder(scan.best);
  for (int64_t i = threadIdx.x; i < n; i += kThreads) z[i] = logits[i] / request.temperature;
  SyncThreads();
  const float max = ValueOf(scan.max_key) / request.temperature;
  if (max - max != 0.0f) {
    *finite = false;
    return -1;
  }
  if (request.top_k > 0 && request.top_k < n) {
    const uint64_t last =
        SelectOrder(shared, z, n, max, static_cast<uint64_t>(request.top_k), CountOne{});
    KeepThrough(z, n, last);
  }
  if (request.top_p_mantissa != 0) {
    uint64_t sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += WeightOf(z[i], max);
    const uint64_t total = BlockSum(shared, sum);
    const uint64_t target = TopPTarget(request.top_p_mantissa, request.top_p_shift, total);
    KeepThrough(z, n, SelectOrder(shared, z, n, max, target, CountWeight{max}));
  }
  if (request.min_p > 0.0f) {
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      if (numerics::ExpF(z[i] - max) < request.min_p) z[i] = NegativeInfinity();
    }
    SyncThreads();
  }
  return Draw(shared, z, n, request);
}

// What log-probabilities need: the total, the token's rank, the most probable tokens.
__device__ void ReportLogprobs(Shared* shared, const SampleArgs& args, const SampleRequest& request,
                               const float* raw, const Scan& scan, SampleReply* reply) {
  const int64_t n = args.vocab;
  const float max = ValueOf(scan.max_key);
  if (scan.max_key != kNegativeInfinityKey) {
    uint64_t sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += WeightOf(raw[i], max);
    reply->total = BlockSum(shared, sum);
  }
  if (reply->token >= 0) {
    reply->logit = raw[reply->token];
    const uint64_t own = OrderOf(reply->logit, reply->token);
    uint64_t before = 0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      before += OrderOf(raw[i], i) > own ? 1 : 0;
    }
    reply->rank = static_cast<int32_t>(BlockSum(shared, before)) + 1;
  }
  if (request.num_logprobs == 0) return;
  const uint64_t last =
      SelectOrder(shared, raw, n, max, static_cast<uint64_t>(request.num_logprobs), CountOne{});
  if (threadIdx.x == 0) shared->count = 0;
  SyncThreads();
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    if (OrderOf(raw[i], i) < last) continue;
    const uint32_t at = AtomicAdd(&shared->count, uint32_t{1});
    args.top[request.top_begin + static_cast<int64_t>(at)] = {static_cast<int32_t>(i), raw[i]};
  }
}

__global__ void __launch_bounds__(kThreads) SampleKernel(SampleArgs args) {
  VERBATIM_SHARED_MEMORY(bytes);
  Shared* shared = reinterpret_cast<Shared*>(bytes);
  const int64_t row = blockIdx.x;
  const SampleRequest request = args.requests[row];
  const float* raw = args.logits + row * args.stride;
  float* z = args.scratch + row * args.vocab;

  uint64_t sum_a = 0, sum_b = 0;
  for (int64_t i = threadIdx.x; i < args.vocab; i += kThreads) {
    uint32_t bits;
    memcpy(&bits, raw + i, 4);
    sum_a += numerics::fingerprint::SummandA(bits, static_cast<uint64_t>(i));
    sum_b += numerics::fingerprint::SummandB(bits, static_cast<uint64_t>(i));
  }
  SampleReply reply = {};
  reply.fingerprint_a = BlockSum(shared, sum_a);
  reply.fingerprint_b = BlockSum(shared, sum_b);
  const Scan scan = ScanRow(shared, raw, args.vocab);
  reply.max_key = scan.max_key;
  reply.second_key = scan.second_key;
  bool finite = scan.Finite();
  reply.token = request.forced_token;
  if (finite && request.forced_token < 0) {
    reply.token = DrawToken(shared, args, request, raw, z, scan, &finite);
  }
  reply.finite = finite ? 1 : 0;
  if (finite && request.num_logprobs >= 0) {
    ReportLogprobs(shared, args, request, raw, scan, &reply);
  }
  if (threadIdx.x == 0) args.replies[row] = reply;
  if (threadIdx.x == 0 && row == 0) *args.fault_reply = *args.fault;
}

}  // namespace

int LaunchSample(const SampleArgs& args, Stream stream) {
  return Launch(SampleKernel,
                {dim3(static_cast<unsigned int>(args.rows)), dim3(kThreads), sizeof(Shared)},
                stream, args);
}

}  // namespace verbatim::kernels::cuda
