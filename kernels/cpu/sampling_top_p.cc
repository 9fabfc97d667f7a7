// The end of the top-p nucleus: integer mass per bucket of logits, then a selection in one bucket.
#include "kernels/cpu/sampling_top_p.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

namespace verbatim::kernels::cpu {
namespace {

// Weights below 2^-40 are zero, so distances from the maximum end before 28.
constexpr int kBucketsPerUnit = 64;
constexpr int kBuckets = 28 * kBucketsPerUnit;

struct Candidate {
  TokenOrder order;
  uint64_t weight;
};

// Monotone in z: a greater z never has a higher bucket.
int BucketOf(float z, float max) {
  return static_cast<int>(std::min((max - z) * kBucketsPerUnit, static_cast<float>(kBuckets - 1)));
}

uint64_t Fixed(float weight) { return static_cast<uint64_t>(weight * 0x1p40f); }

TokenOrder OrderOf(float z, int64_t id) {
  z += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &z, sizeof(bits));
  const uint32_t upper = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(upper) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

// The last candidate of the shortest prefix, greatest order first, whose weights reach target.
TokenOrder SelectByMass(std::vector<Candidate>& candidates, uint64_t target) {
  const auto before = [](const Candidate& a, const Candidate& b) { return a.order > b.order; };
  auto first = candidates.begin(), last = candidates.end();
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, before);
    uint64_t upper = 0;
    for (auto it = first; it != middle; ++it) upper += it->weight;
    if (upper >= target) {
      last = middle;
    } else {
      target -= upper;
      first = middle;
    }
  }
  return first->order;
}

}  // namespace

uint64_t TopPTarget(float top_p, uint64_t total) {
  // top_p = mantissa · 2^-shift with a 24-bit integer mantissa.
  int exponent;
  const float fraction = std::frexp(top_p, &exponent);
  const uint64_t mantissa = static_cast<uint64_t>(std::ldexp(fraction, 24));
  const int shift = 24 - exponent;
  if (shift >= 88) return 1;  // the product is below 2^88
  const unsigned __int128 product = static_cast<unsigned __int128>(mantissa) * total;
  const unsigned __int128 rounded_up =
      (product + ((static_cast<unsigned __int128>(1) << shift) - 1)) >> shift;
  return static_cast<uint64_t>(rounded_up);
}

TokenOrder LastOfTopP(const float* z, const float* weights, const int32_t* ids, int64_t count,
                      float max, uint64_t target) {
  std::array<uint64_t, kBuckets> mass{};
  for (int64_t i = 0; i < count; ++i) {
    mass[BucketOf(z[ids[i]], max)] += Fixed(weights[ids[i]]);
  }
  int bucket = 0;
  while (bucket < kBuckets && mass[bucket] < target) target -= mass[bucket++];
  if (bucket == kBuckets) return UINT64_MAX;
  std::vector<Candidate> candidates;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t id = ids[i];
    if (BucketOf(z[id], max) == bucket)
      candidates.push_back({OrderOf(z[id], id), Fixed(weights[id])});
  }
  return SelectByMass(candidates, target);
}

}  // namespace verbatim::kernels::cpu
