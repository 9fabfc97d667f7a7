// Sampling on the CPU: checks, the order of the steps, and the selections that touch few tokens.
#include "kernels/cpu/sampling.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/sampling_kernels.h"
#include "kernels/cpu/sampling_top_p.h"
#include "kernels/numerics/elementary64.h"
#include "kernels/ops/checks.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Working memory of a thread, kept between calls so that a step allocates nothing.
struct Scratch {
  std::vector<float> logits;   // processed logits, then logits over temperature
  std::vector<float> weights;  // exp(z − max) for top-p
  std::vector<TokenOrder> top;
  std::vector<int32_t> ids;
};

Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

const SamplingKernels& KernelsFor(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return isa_avx512::GetSamplingKernels();
  if (isa == Isa::kAvx2) return isa_avx2::GetSamplingKernels();
#endif
  (void)isa;
  return isa_scalar::GetSamplingKernels();
}

float ValueOf(int32_t key) {
  const int32_t bits = key ^ (key < 0 ? 0x7fffffff : 0);
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
int32_t KeyOf(float x) {
  x += 0.0f;
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits ^ (bits < 0 ? 0x7fffffff : 0);
}

bool IsFinite(const RowScan& scan) {
  return scan.max_key < kPositiveInfinityKey && scan.min_key >= kNegativeInfinityKey;
}

void ApplyProcessors(const SamplingRow& row, float* logits) {
  for (int32_t token : row.banned) logits[token] = -kInfinity;
  for (const auto& [token, bias] : row.logit_bias) logits[token] += bias;
  if (!HasPenalty(row)) return;
  for (const TokenCount& count : row.counts) {
    float& logit = logits[count.token];
    if (count.in_prompt + count.in_output > 0) {
      logit = logit > 0.0f ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    }
    if (count.in_output > 0) {
      logit = logit - static_cast<float>(count.in_output) * row.frequency_penalty;
      logit = logit - row.presence_penalty;
    }
  }
}

// The drawn token, −1 when none is possible; false in `finite` when processing met a NaN or +Inf.
int32_t DrawToken(const SamplingKernels& kernels, const SamplingRow& row, const float* raw,
                  int64_t vocab, const RowScan& raw_scan, bool* finite) {
  Scratch& scratch = ThreadScratch();
  const float* logits = raw;
  RowScan scan = raw_scan;
  if (!row.banned.empty() || !row.logit_bias.empty() || HasPenalty(row)) {
    scratch.logits.assign(raw, raw + vocab);
    ApplyProcessors(row, scratch.logits.data());
    logits = scratch.logits.data();
    kernels.scan(logits, vocab, /*fingerprint=*/false, &scan);
    if (!IsFinite(scan)) {
      *finite = false;
      return -1;
    }
  }
  if (scan.max_key == kNegativeInfinityKey) return -1;
  if (row.temperature < kMinTemperature || row.top_k == 1) return scan.argmax;

  scratch.logits.resize(vocab);
  float* z = scratch.logits.data();
  kernels.divide(logits, vocab, row.temperature, z);
  const float max = ValueOf(scan.max_key) / row.temperature;
  if (!std::isfinite(max)) {
    *finite = false;
    return -1;
  }
  if (row.top_k > 0 && row.top_k < vocab) {
    scratch.top.resize(row.top_k);
    kernels.collect_top(z, vocab, row.top_k, scratch.top.data());
    kernels.keep_through(z, vocab, OrderKey(scratch.top[0]), OrderId(scratch.top[0]));
  }
  if (row.top_p < 1.0f) {
    scratch.weights.resize(vocab);
    const uint64_t total = kernels.weigh(z, vocab, max, scratch.weights.data());
    const uint64_t target = TopPTarget(row.top_p, total);
    // Nearly always the nucleus lies within 8 of the maximum; at 28, weights are zero.
    scratch.ids.resize(vocab);
    TokenOrder last = UINT64_MAX;
    for (const float distance : {8.0f, 28.0f}) {
      const int64_t count = kernels.collect_from(z, vocab, max - distance, scratch.ids.data());
      last = LastOfTopP(z, scratch.weights.data(), scratch.ids.data(), count, max, target);
      if (last != UINT64_MAX) break;
    }
    kernels.keep_through(z, vocab, OrderKey(last), OrderId(last));
  }
  if (row.min_p > 0.0f) kernels.keep_weight(z, vocab, max, row.min_p);
  return kernels.draw(z, vocab, scan.argmax, row.seed, row.position, row.sample_index);
}

void ReportLogprobs(const SamplingKernels& kernels, const SamplingRow& row, const float* raw,
                    int64_t vocab, const RowScan& scan, SampledRow* result) {
  const float max = ValueOf(scan.max_key);
  double log_total = 0;
  if (max != -kInfinity) {
    const uint64_t total = kernels.weigh(raw, vocab, max, nullptr);
    log_total = numerics::Log64(static_cast<double>(total) * 0x1p-40);
  }
  const auto logprob = [&](float logit) {
    if (logit == -kInfinity) return -kInfinity;
    return static_cast<float>((static_cast<double>(logit) - static_cast<double>(max)) - log_total);
  };
  if (result->token >= 0) {
    const float logit = raw[result->token];
    const int64_t before = kernels.count_before(raw, vocab, KeyOf(logit), result->token);
    result->chosen = {result->token, logprob(logit), static_cast<int32_t>(before + 1)};
  }
  const int64_t count = std::min<int64_t>(row.num_logprobs, vocab);
  if (count == 0) return;
  std::vector<TokenOrder>& top = ThreadScratch().top;
  top.resize(count);
  kernels.collect_top(raw, vocab, count, top.data());
  std::sort(top.begin(), top.end(), std::greater<TokenOrder>());
  result->top.reserve(count);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t token = OrderId(top[i]);
    result->top.push_back({token, logprob(raw[token]), static_cast<int32_t>(i + 1)});
  }
}

void SampleRow(const SamplingKernels& kernels, const SamplingRow& row, const float* raw,
               int64_t vocab, SampledRow* result) {
  *result = SampledRow();
  RowScan scan;
  kernels.scan(raw, vocab, /*fingerprint=*/true, &scan);
  bool finite = IsFinite(scan);
  int32_t token = row.forced_token;
  if (finite && token < 0) token = DrawToken(kernels, row, raw, vocab, scan, &finite);
  if (!finite) {
    result->finite = false;
    return;
  }
  result->token = token;
  result->fingerprint = {scan.fingerprint_a, scan.fingerprint_b};
  if (vocab == 1 || scan.second_key == kNegativeInfinityKey) {
    result->top_margin = scan.max_key == kNegativeInfinityKey ? 0.0f : kInfinity;
  } else {
    result->top_margin = ValueOf(scan.max_key) - ValueOf(scan.second_key);
  }
  if (row.num_logprobs >= 0) ReportLogprobs(kernels, row, raw, vocab, scan, result);
}

}  // namespace

absl::Status Sample(const CpuContext& context, const SamplingParams& params) {
  const int64_t rows = static_cast<int64_t>(params.rows.size());
  if (params.results.size() != params.rows.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Sample: ", rows, " rows but ", params.results.size(), " results"));
  }
  if (rows == 0) return absl::OkStatus();
  if (params.logits == nullptr || params.vocab < 1 ||
      params.vocab > std::numeric_limits<int32_t>::max() ||
      (rows > 1 && params.stride < params.vocab)) {
    return absl::InvalidArgumentError(
        absl::StrCat("Sample: vocab ", params.vocab, ", stride ", params.stride,
                     params.logits == nullptr ? ", logits are missing" : ""));
  }
  for (int64_t i = 0; i < rows; ++i) {
    if (std::string error = SamplingRowError(params.rows[i], params.vocab); !error.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("Sample: rows[", i, "]: ", error, "; vocab is ", params.vocab));
    }
  }
  const SamplingKernels& kernels = KernelsFor(context.isa);
  const auto sample = [&](int64_t i) {
    SampleRow(kernels, params.rows[i], params.logits + i * params.stride, params.vocab,
              &params.results[i]);
  };
  // One row takes microseconds to tens of microseconds: splitting it would cost as much in waking
  // threads.
  if (rows == 1) {
    sample(0);
    return absl::OkStatus();
  }
  // Rows differ in cost, so threads take them as they come; a row's result does not depend on who
  // computes it.
  std::atomic<int64_t> next{0};
  context.pool->Run([&](int) {
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < rows;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      sample(i);
    }
  });
  return absl::OkStatus();
}

}  // namespace verbatim::kernels::cpu
