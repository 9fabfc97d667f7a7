// Sampling against a sorting reference, exact distributions, and itself in other batches.
#include "kernels/cpu/sampling.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/sampling_reference.h"
#include "kernels/cpu/sampling_top_p.h"

namespace verbatim::kernels::cpu {
namespace {

using ::testing::HasSubstr;

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<Isa> Isas() {
  std::vector<Isa> isas = {Isa::kScalar};
  if (DetectIsa() >= Isa::kAvx2) isas.push_back(Isa::kAvx2);
  if (DetectIsa() >= Isa::kAvx512) isas.push_back(Isa::kAvx512);
  return isas;
}

std::vector<float> RandomLogits(int64_t n, uint32_t seed, float deviation = 3.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> logits(n);
  for (float& l : logits) l = normal(rng);
  return logits;
}

// Values on a coarse grid, so that ties are everywhere, with some −inf, −0 and +0.
std::vector<float> TiedLogits(int64_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::vector<float> logits(n);
  for (float& l : logits) {
    const int r = static_cast<int>(rng() % 23);
    l = r == 0 ? -kInf : r == 1 ? -0.0f : r == 2 ? 0.0f : static_cast<float>(r % 8) - 5.0f;
  }
  return logits;
}

std::vector<SampledRow> SampleRows(const std::vector<SamplingRow>& rows,
                                   const std::vector<float>& logits, int64_t vocab, Isa isa,
                                   int threads) {
  ThreadPool pool(threads);
  std::vector<SampledRow> results(rows.size());
  SamplingParams params;
  params.logits = logits.data();
  params.stride = rows.empty() ? vocab : static_cast<int64_t>(logits.size() / rows.size());
  params.vocab = vocab;
  params.rows = rows;
  params.results = absl::MakeSpan(results);
  const absl::Status status = Sample({&pool, isa}, params);
  EXPECT_TRUE(status.ok()) << status;
  return results;
}

SampledRow SampleOne(const SamplingRow& row, const std::vector<float>& logits,
                     Isa isa = DetectIsa()) {
  return SampleRows({row}, logits, static_cast<int64_t>(logits.size()), isa, 1)[0];
}

uint32_t BitsOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

bool Same(const TokenLogprob& a, const TokenLogprob& b) {
  return a.token == b.token && a.rank == b.rank && BitsOf(a.logprob) == BitsOf(b.logprob);
}

void ExpectSame(const SampledRow& a, const SampledRow& b, const std::string& what) {
  EXPECT_EQ(a.token, b.token) << what;
  EXPECT_EQ(a.finite, b.finite) << what;
  EXPECT_EQ(a.fingerprint, b.fingerprint) << what;
  EXPECT_EQ(BitsOf(a.top_margin), BitsOf(b.top_margin)) << what;
  EXPECT_TRUE(Same(a.chosen, b.chosen)) << what;
  ASSERT_EQ(a.top.size(), b.top.size()) << what;
  for (size_t i = 0; i < a.top.size(); ++i) EXPECT_TRUE(Same(a.top[i], b.top[i])) << what;
}

// Rows of every kind; the tables they point to live as long as this object.
struct Mixture {
  std::vector<std::pair<int32_t, float>> bias;
  std::vector<TokenCount> counts;
  std::vector<int32_t> banned;
  std::vector<SamplingRow> rows;

  explicit Mixture(int64_t vocab) {
    const auto id = [vocab](int64_t i) { return static_cast<int32_t>(i % vocab); };
    bias = {{id(0), 2.5f}};
    if (vocab > 1) bias.push_back({id(1), -4.0f});
    counts = {{id(0), 1, 2}};
    if (vocab > 30) counts.insert(counts.end(), {{3, 0, 5}, {7, 2, 0}, {30, 1, 1}});
    if (vocab > 1) banned = {id(1)};
    SamplingRow greedy;
    greedy.temperature = 0;
    Add(greedy);
    greedy.num_logprobs = 5;
    Add(greedy);
    greedy.logit_bias = bias;
    greedy.banned = banned;
    Add(greedy);
    SamplingRow row;
    Add(row);
    row.num_logprobs = 0;
    row.temperature = 0.7f;
    Add(row);
    row.top_k = 20;
    Add(row);
    row.top_p = 0.9f;
    Add(row);
    row.min_p = 0.05f;
    Add(row);
    row.top_k = 0;
    row.min_p = 0;
    row.temperature = 2.5f;
    Add(row);
    row.top_p = 0.05f;
    Add(row);
    row.top_p = 1.0f;
    row.min_p = 0.3f;
    Add(row);
    row.counts = counts;
    row.presence_penalty = 0.5f;
    row.frequency_penalty = 0.25f;
    row.repetition_penalty = 1.3f;
    row.min_p = 0;
    row.num_logprobs = 3;
    Add(row);
    row.logit_bias = bias;
    row.banned = banned;
    row.top_p = 0.8f;
    row.top_k = 40;
    Add(row);
    row.forced_token = id(12345);
    Add(row);
  }

 private:
  void Add(SamplingRow row) {
    row.seed = 0x123456789abcdefull * (rows.size() + 1);
    row.position = static_cast<uint32_t>(17 * rows.size());
    row.sample_index = static_cast<uint32_t>(rows.size() % 3);
    rows.push_back(row);
  }
};

TEST(Sampling, MatchesTheSortingReferenceOnEveryIsa) {
  for (int64_t vocab : {1, 2, 5, 31, 64, 257, 1000, 49152}) {
    const Mixture mixture(vocab);
    for (uint32_t seed = 0; seed < (vocab > 1000 ? 2 : 6); ++seed) {
      for (const bool tied : {false, true}) {
        std::vector<float> logits = tied ? TiedLogits(vocab, seed) : RandomLogits(vocab, seed);
        if (tied && vocab <= 2) logits[0] = 1.0f;
        for (size_t i = 0; i < mixture.rows.size(); ++i) {
          const SamplingRow& row = mixture.rows[i];
          const int32_t expected =
              row.forced_token >= 0 ? row.forced_token : reference::Draw(row, logits);
          for (Isa isa : Isas()) {
            EXPECT_EQ(SampleOne(row, logits, isa).token, expected)
                << "vocab " << vocab << " row " << i << " seed " << seed << " tied " << tied << " "
                << NameOf(isa);
          }
        }
      }
    }
  }
}

TEST(Sampling, RowAloneEqualsRowInAnyBatchThreadCountAndIsa) {
  for (int64_t vocab : {1, 2, 31, 1000, 49152, 128256}) {
    const Mixture mixture(vocab);
    const size_t rows = mixture.rows.size();
    const int64_t stride = vocab + 3;
    std::vector<float> logits(rows * stride, std::numeric_limits<float>::quiet_NaN());
    std::vector<SampledRow> alone;
    for (size_t i = 0; i < rows; ++i) {
      const std::vector<float> row = RandomLogits(vocab, 100 + static_cast<uint32_t>(i));
      std::copy(row.begin(), row.end(), logits.begin() + i * stride);
      alone.push_back(SampleOne(mixture.rows[i], row, Isa::kScalar));
      EXPECT_EQ(alone[i].fingerprint, numerics::FingerprintRow(row.data(), vocab));
    }
    for (Isa isa : Isas()) {
      if (vocab > 100000 && isa == Isa::kScalar) continue;
      for (int threads : {1, 2, 3, 8}) {
        const std::vector<SampledRow> batch = SampleRows(mixture.rows, logits, vocab, isa, threads);
        for (size_t i = 0; i < rows; ++i) {
          ExpectSame(batch[i], alone[i],
                     absl::StrCat("vocab ", vocab, " row ", i, " threads ", threads, " isa ",
                                  static_cast<int>(isa)));
        }
      }
    }
  }
}

TEST(Sampling, GreedyTiesGoToTheLowerIdAndZerosAreEqual) {
  SamplingRow row;
  row.temperature = 0;
  for (Isa isa : Isas()) {
    std::vector<float> logits(100, -1.0f);
    logits[70] = logits[37] = logits[99] = 2.0f;
    EXPECT_EQ(SampleOne(row, logits, isa).token, 37);
    EXPECT_EQ(SampleOne(row, logits, isa).top_margin, 0.0f);
    std::fill(logits.begin(), logits.end(), -1.0f);
    logits[20] = -0.0f;
    logits[40] = 0.0f;
    EXPECT_EQ(SampleOne(row, logits, isa).token, 20);
    logits[20] = -0.5f;
    EXPECT_EQ(SampleOne(row, logits, isa).top_margin, 0.5f);
  }
}

TEST(Sampling, NanOrPositiveInfinityFailsItsRowAlone) {
  const int64_t vocab = 100;
  SamplingRow row;
  row.num_logprobs = 2;
  const std::vector<SamplingRow> rows(3, row);
  for (Isa isa : Isas()) {
    for (float bad : {std::nanf(""), -std::nanf("1"), kInf}) {
      for (int64_t at = 0; at < vocab; ++at) {
        std::vector<float> logits = RandomLogits(3 * vocab, 5);
        const std::vector<SampledRow> clean = SampleRows(rows, logits, vocab, isa, 2);
        logits[vocab + at] = bad;
        const std::vector<SampledRow> got = SampleRows(rows, logits, vocab, isa, 2);
        ExpectSame(got[0], clean[0], "before");
        ExpectSame(got[2], clean[2], "after");
        EXPECT_FALSE(got[1].finite);
        EXPECT_EQ(got[1].token, -1);
        EXPECT_EQ(got[1].fingerprint, numerics::RowFingerprint());
        EXPECT_TRUE(got[1].top.empty());
      }
    }
  }
}

TEST(Sampling, ImpossibleTokens) {
  std::vector<float> logits = {1.0f, -kInf, 3.0f, 2.0f};
  const std::vector<int32_t> all = {0, 1, 2, 3}, best = {2};
  SamplingRow row;
  row.num_logprobs = 4;
  for (float temperature : {0.0f, 1.0f}) {
    row.temperature = temperature;
    row.banned = all;
    SampledRow none = SampleOne(row, logits);
    EXPECT_EQ(none.token, -1);
    EXPECT_TRUE(none.finite);
    EXPECT_EQ(none.top.size(), 4u);
    EXPECT_EQ(none.top[3].logprob, -kInf);
    row.banned = best;
    EXPECT_NE(SampleOne(row, logits).token, 2);
    EXPECT_NE(SampleOne(row, logits).token, -1);
    row.banned = {};
    const SampledRow empty = SampleOne(row, std::vector<float>(9, -kInf));
    EXPECT_EQ(empty.token, -1);
    EXPECT_TRUE(empty.finite);
    EXPECT_EQ(empty.top_margin, 0.0f);
  }
  // A bias that overflows, and a temperature that does, end the row as not finite.
  const std::vector<std::pair<int32_t, float>> bias = {{0, 3e38f}};
  logits[0] = 3e38f;
  row.logit_bias = bias;
  EXPECT_FALSE(SampleOne(row, logits).finite);
  row.logit_bias = {};
  row.temperature = 0.1f;
  EXPECT_FALSE(SampleOne(row, logits).finite);
}

TEST(Sampling, LogprobsAndRanksMatchDouble) {
  for (int64_t vocab : {1, 2, 31, 49152}) {
    const std::vector<float> logits = RandomLogits(vocab, 9);
    long double sum = 0;
    for (float l : logits) sum += expl(static_cast<long double>(l));
    const std::vector<int32_t> order = reference::Sorted(logits);
    SamplingRow row;
    row.num_logprobs = 1000000;
    row.forced_token = static_cast<int32_t>(vocab / 2);
    for (Isa isa : Isas()) {
      const SampledRow got = SampleOne(row, logits, isa);
      ASSERT_EQ(got.top.size(), static_cast<size_t>(vocab));
      EXPECT_EQ(got.token, row.forced_token);
      for (int64_t i = 0; i < vocab; ++i) {
        EXPECT_EQ(got.top[i].token, order[i]);
        EXPECT_EQ(got.top[i].rank, i + 1);
        // exp within 0.7 units of 2^-24 and floors of 2^-40 a token: relative 2^-23 + vocab ·
        // 2^-40.
        const double exact = static_cast<double>(logits[order[i]] - logl(sum));
        EXPECT_NEAR(got.top[i].logprob, exact,
                    0x1p-22 + vocab * 0x1p-40 + std::fabs(exact) * 0x1p-24);
        if (order[i] == row.forced_token) {
          EXPECT_EQ(got.chosen.rank, i + 1);
        }
      }
    }
  }
}

TEST(Sampling, PenaltiesFollowTheFormula) {
  const std::vector<float> logits = {2.0f, -2.0f, 1.0f, 0.5f};
  const std::vector<TokenCount> counts = {{0, 1, 0}, {1, 0, 3}, {2, 1, 1}};
  SamplingRow row;
  row.counts = counts;
  row.repetition_penalty = 2.0f;
  row.frequency_penalty = 0.5f;
  row.presence_penalty = 0.25f;
  EXPECT_THAT(reference::Processed(row, logits),
              ::testing::ElementsAre(1.0f, -4.0f - 1.5f - 0.25f, 0.5f - 0.5f - 0.25f, 0.5f));
  row.temperature = 0;
  EXPECT_EQ(SampleOne(row, logits).token, 0);
  row.repetition_penalty = 5.0f;
  EXPECT_EQ(SampleOne(row, logits).token, 3);
}

TEST(Sampling, TopPBoundaryIsExact) {
  constexpr uint64_t kOne = uint64_t{1} << 40;
  EXPECT_EQ(TopPTarget(0.5f, 4 * kOne), 2 * kOne);
  EXPECT_EQ(TopPTarget(0.5f, 4 * kOne + 1), 2 * kOne + 1);
  EXPECT_EQ(TopPTarget(0x1p-149f, 4 * kOne), 1u);
  EXPECT_EQ(TopPTarget(1.0f - 0x1p-24f, uint64_t{1} << 57),
            (uint64_t{1} << 57) - (uint64_t{1} << 33));
  // Equal weights: a prefix of exactly half the mass is enough for 0.5, and one more token is
  // needed just above it.
  const std::vector<float> z(8, 1.5f), weights(8, 1.0f);
  const std::vector<int32_t> ids = {0, 1, 2, 3, 4, 5, 6, 7};
  for (int kept = 1; kept <= 8; ++kept) {
    EXPECT_EQ(OrderId(LastOfTopP(z.data(), weights.data(), ids.data(), 8, 1.5f, kept * kOne)),
              kept - 1);
    if (kept == 8) continue;
    EXPECT_EQ(OrderId(LastOfTopP(z.data(), weights.data(), ids.data(), 8, 1.5f, kept * kOne + 1)),
              kept);
  }
  EXPECT_EQ(LastOfTopP(z.data(), weights.data(), ids.data(), 8, 1.5f, 8 * kOne + 1), UINT64_MAX);
}

// Pearson's statistic of draws against exact probabilities stays below the mean plus six standard
// deviations of its distribution (degrees of freedom d: mean d, variance 2d); bins expected below
// 10 draws are pooled. The draws are fixed, so this either always passes or never.
TEST(Sampling, DrawsFollowTheDistribution) {
  const int64_t vocab = 200;
  const std::vector<float> logits = RandomLogits(vocab, 3, 1.5f);
  std::vector<SamplingRow> kinds(4);
  kinds[1].temperature = 0.6f;
  kinds[2].top_k = 12;
  kinds[3].temperature = 1.4f;
  kinds[3].top_p = 0.7f;
  for (SamplingRow row : kinds) {
    const std::vector<float> z = reference::Filtered(row, logits);
    double total = 0;
    for (float l : z) total += std::exp(static_cast<double>(l));
    const int draws = 40000;
    std::vector<int> seen(vocab, 0);
    for (int i = 0; i < draws; ++i) {
      // Both ways in which draws differ: the seed, and the position in a sequence.
      row.seed = 1000 + i / 200;
      row.position = i % 200;
      ++seen[SampleOne(row, logits).token];
    }
    double statistic = 0, pooled_expected = 0, pooled_seen = 0;
    int bins = 0;
    for (int64_t t = 0; t < vocab; ++t) {
      const double expected = draws * std::exp(static_cast<double>(z[t])) / total;
      if (expected == 0) {
        EXPECT_EQ(seen[t], 0);
      } else if (expected < 10) {
        pooled_expected += expected;
        pooled_seen += seen[t];
      } else {
        statistic += (seen[t] - expected) * (seen[t] - expected) / expected;
        ++bins;
      }
    }
    if (pooled_expected >= 10) {
      statistic +=
          (pooled_seen - pooled_expected) * (pooled_seen - pooled_expected) / pooled_expected;
      ++bins;
    }
    const double degrees = bins - 1;
    EXPECT_GT(degrees, 5);
    EXPECT_LT(statistic, degrees + 6 * std::sqrt(2 * degrees));
    EXPECT_GT(statistic, degrees - 6 * std::sqrt(2 * degrees));
  }
}

TEST(Sampling, RareTokensOfALargeVocabularyAreNotOverdrawn) {
  // One token at 1 − 2e-4, 49151 sharing the rest. A uniform that can round to 1 would draw the
  // rest far more often.
  const int64_t vocab = 49152;
  std::vector<float> logits(vocab, 0.0f);
  logits[7] = static_cast<float>(std::log(vocab / 2e-4));
  SamplingRow row;
  int rest = 0;
  const int draws = 10000;
  for (int i = 0; i < draws; ++i) {
    row.seed = i;
    rest += SampleOne(row, logits).token != 7 ? 1 : 0;
  }
  EXPECT_LE(rest, 2 + 6 * 1.5);  // Poisson with mean 2
}

TEST(Sampling, BadParametersNameTheField) {
  ThreadPool pool(1);
  const std::vector<float> logits(10, 0.0f);
  const auto error = [&](const SamplingRow& row) {
    SampledRow result;
    SamplingParams params;
    params.logits = logits.data();
    params.stride = params.vocab = 10;
    params.rows = absl::MakeConstSpan(&row, 1);
    params.results = absl::MakeSpan(&result, 1);
    const absl::Status status = Sample({&pool, DetectIsa()}, params);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  SamplingRow row;
  row.temperature = -1;
  EXPECT_THAT(error(row), HasSubstr("rows[0]: temperature"));
  row.temperature = std::nanf("");
  EXPECT_THAT(error(row), HasSubstr("temperature"));
  row = SamplingRow();
  row.top_k = -1;
  EXPECT_THAT(error(row), HasSubstr("top_k"));
  row = SamplingRow();
  for (float p : {0.0f, -1.0f, 1.5f, std::nanf("")}) {
    row.top_p = p;
    EXPECT_THAT(error(row), HasSubstr("top_p"));
  }
  row = SamplingRow();
  row.min_p = 1.01f;
  EXPECT_THAT(error(row), HasSubstr("min_p"));
  row = SamplingRow();
  row.repetition_penalty = 0;
  EXPECT_THAT(error(row), HasSubstr("repetition_penalty"));
  row = SamplingRow();
  row.presence_penalty = kInf;
  EXPECT_THAT(error(row), HasSubstr("presence_penalty"));
  row = SamplingRow();
  const std::vector<std::pair<int32_t, float>> bias = {{10, 1.0f}};
  row.logit_bias = bias;
  EXPECT_THAT(error(row), HasSubstr("logit_bias"));
  row = SamplingRow();
  const std::vector<int32_t> banned = {-1};
  row.banned = banned;
  EXPECT_THAT(error(row), HasSubstr("banned"));
  row = SamplingRow();
  row.forced_token = 10;
  EXPECT_THAT(error(row), HasSubstr("forced_token"));
}

}  // namespace
}  // namespace verbatim::kernels::cpu
