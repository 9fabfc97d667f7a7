// Sampling: the device draws the CPU's tokens and reports its bits.
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "kernels/cuda/backend_pair_test.h"

namespace verbatim::kernels::cuda {
namespace {

using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::string Text(const TokenLogprob& t) {
  return absl::StrCat(t.token, "/", t.rank, "/", BitsOf(t.logprob));
}
// All fields, so that a difference shows where it is.
std::string Text(const SampledRow& row) {
  std::string text = absl::StrCat("token ", row.token, " finite ", row.finite, " fingerprint ",
                                  row.fingerprint.a, ",", row.fingerprint.b, " margin ",
                                  BitsOf(row.top_margin), " chosen ", Text(row.chosen), " top");
  for (const TokenLogprob& t : row.top) absl::StrAppend(&text, " ", Text(t));
  return text;
}

// A row with everything at random; its lists live here.
struct RandomRow {
  SamplingRow row;
  std::vector<std::pair<int32_t, float>> bias;
  std::vector<TokenCount> counts;
  std::vector<int32_t> banned;

  RandomRow(std::mt19937& rng, int64_t vocab) {
    const auto pick = [&](std::initializer_list<float> values) {
      return values.begin()[rng() % values.size()];
    };
    const auto distinct = [&](size_t most) {
      std::set<int32_t> tokens;
      for (size_t i = 0; i < most; ++i) tokens.insert(static_cast<int32_t>(rng() % vocab));
      return tokens;
    };
    row.temperature = pick({0.0f, 1e-6f, 0.3f, 1.0f, 1.0f, 2.5f, 30.0f});
    row.top_k = static_cast<int32_t>(pick({0, 0, 1, 2, 5, 40, 1000, 1e6}));
    row.top_p = pick({1.0f, 1.0f, 0.999f, 0.9f, 0.5f, 0.01f, 1e-20f, 0x1p-149f});
    row.min_p = pick({0.0f, 0.0f, 0.02f, 0.5f, 1.0f});
    row.seed = (static_cast<uint64_t>(rng()) << 32) | rng();
    row.position = rng();
    row.sample_index = rng() % 3;
    row.num_logprobs = static_cast<int32_t>(pick({-1, -1, 0, 1, 5, 20, 300}));
    if (rng() % 4 == 0) row.forced_token = static_cast<int32_t>(rng() % vocab);
    if (rng() % 3 == 0) {
      for (int32_t t : distinct(6)) bias.push_back({t, pick({-kInfinity, -3.0f, 2.0f, 8.0f})});
    }
    if (rng() % 3 == 0) {
      for (int32_t t : distinct(9)) {
        counts.push_back({t, static_cast<int32_t>(rng() % 3), static_cast<int32_t>(rng() % 4)});
      }
      row.presence_penalty = pick({0.0f, 0.7f, -0.5f});
      row.frequency_penalty = pick({0.0f, 0.3f});
      row.repetition_penalty = pick({1.0f, 1.3f, 0.8f});
    }
    if (rng() % 3 == 0) {
      for (int32_t t : distinct(3)) banned.insert(banned.end(), 2, t);  // twice is allowed
    }
  }
  void Link() {
    row.logit_bias = bias;
    row.counts = counts;
    row.banned = banned;
  }
};

class CudaSamplerTest : public BackendPairTest {
 protected:
  static std::vector<SampledRow> Sample(Backend& backend, const std::vector<SamplingRow>& rows,
                                        const std::vector<float>& logits, int64_t vocab,
                                        int64_t stride) {
    Arrays arrays(backend);
    std::vector<SampledRow> results(rows.size());
    const absl::Status status = backend.Sample({.logits = arrays.Put(logits),
                                                .stride = stride,
                                                .vocab = vocab,
                                                .rows = rows,
                                                .results = absl::MakeSpan(results)});
    EXPECT_TRUE(status.ok()) << status;
    return results;
  }

  void ExpectSame(const std::vector<SamplingRow>& rows, const std::vector<float>& logits,
                  int64_t vocab, int64_t stride) {
    const std::vector<SampledRow> expected = Sample(*cpu_, rows, logits, vocab, stride);
    for (int s = 0; s < test_device::Schedules(); ++s) {
      const std::string name = test_device::UseSchedule(s);
      const std::vector<SampledRow> actual = Sample(*cuda_, rows, logits, vocab, stride);
      for (size_t i = 0; i < rows.size(); ++i) {
        EXPECT_EQ(Text(expected[i]), Text(actual[i])) << name << ", row " << i;
      }
    }
  }
};

TEST_F(CudaSamplerTest, RandomRowsOfRandomLogits) {
  std::mt19937 rng(71);
  for (int64_t vocab : {1, 2, 5, 31, 257, 1000, 5003}) {
    if (test_device::Slow() && vocab > 300) continue;
    SCOPED_TRACE(vocab);
    const int64_t stride = vocab + 7, count = test_device::Slow() ? 8 : 24;
    std::vector<RandomRow> random;
    for (int64_t i = 0; i < count; ++i) random.emplace_back(rng, vocab);
    std::vector<SamplingRow> rows;
    for (RandomRow& r : random) {
      r.Link();
      rows.push_back(r.row);
    }
    std::vector<float> logits = RandomFloats(count * stride, 72, 3.0f);
    // Every second row: ties, zeros of both signs and impossible tokens.
    for (int64_t i = 1; i < count; i += 2) {
      for (int64_t t = 0; t < vocab; ++t) {
        const int kind = static_cast<int>(rng() % 23);
        logits[i * stride + t] = kind == 0   ? -kInfinity
                                 : kind == 1 ? -0.0f
                                 : kind == 2 ? 0.0f
                                             : static_cast<float>(kind % 8) - 5.0f;
      }
    }
    ExpectSame(rows, logits, vocab, stride);
  }
}

TEST_F(CudaSamplerTest, SpreadAndFlatRows) {
  std::mt19937 rng(73);
  const int64_t vocab = test_device::Slow() ? 500 : 3000;
  for (float deviation : {0.0f, 1e-4f, 0.1f, 30.0f, 1e4f}) {
    SCOPED_TRACE(deviation);
    std::vector<SamplingRow> rows(4);
    for (SamplingRow& row : rows) {
      row.seed = rng();
      row.num_logprobs = 3;
    }
    rows[0].top_k = 17;
    rows[1].top_p = 0.7f;
    rows[2].top_p = 0.95f;
    rows[2].top_k = 450;
    rows[3].min_p = 0.1f;
    std::vector<float> logits(4 * vocab, 1.5f);
    if (deviation > 0) logits = RandomFloats(4 * vocab, 74, deviation);
    ExpectSame(rows, logits, vocab, vocab);
  }
}

TEST_F(CudaSamplerTest, BadLogitsEndTheirRowAlone) {
  const int64_t vocab = 300;
  std::vector<float> logits = RandomFloats(6 * vocab, 75);
  logits[vocab + 7] = std::nanf("");
  logits[2 * vocab + 299] = kInfinity;
  for (int64_t t = 0; t < vocab; ++t) logits[3 * vocab + t] = -kInfinity;
  for (int64_t t = 0; t < vocab; ++t) logits[4 * vocab + t] *= 1e38f;
  logits[5 * vocab + 3] = -std::nanf("");
  std::vector<SamplingRow> rows(6);
  for (SamplingRow& row : rows) row.num_logprobs = 2;
  rows[4].temperature = 0.01f;  // overflows
  ExpectSame(rows, logits, vocab, vocab);
  const std::vector<SampledRow> results = Sample(*cuda_, rows, logits, vocab, vocab);
  EXPECT_FALSE(results[1].finite);
  EXPECT_FALSE(results[2].finite);
  EXPECT_EQ(results[3].token, -1);
  EXPECT_FALSE(results[4].finite);
  EXPECT_FALSE(results[5].finite);
  EXPECT_TRUE(results[0].finite);
}

TEST_F(CudaSamplerTest, MoreRowsThanTheScratchHolds) {
  if (test_device::Slow()) GTEST_SKIP() << "nothing new for a sanitizer";
  // A megabyte of scratch: 104 rows a slice.
  const int64_t vocab = 2500, count = 230;
  std::vector<SamplingRow> rows(count);
  for (int64_t i = 0; i < count; ++i) rows[i].seed = static_cast<uint64_t>(i);
  const std::vector<float> logits = RandomFloats(count * vocab, 76);
  const std::vector<SampledRow> expected = Sample(*cpu_, rows, logits, vocab, vocab);
  const std::vector<SampledRow> actual = Sample(*cuda_, rows, logits, vocab, vocab);
  for (int64_t i = 0; i < count; ++i) EXPECT_EQ(Text(expected[i]), Text(actual[i])) << i;
}

TEST_F(CudaSamplerTest, BadRowsAreNamed) {
  std::vector<float> logits(10);
  std::vector<SampledRow> results(1);
  const auto message = [&](const SamplingRow& row, int64_t vocab = 10) {
    const absl::Status status = cuda_->Sample({.logits = logits.data(),
                                               .stride = vocab,
                                               .vocab = vocab,
                                               .rows = {&row, 1},
                                               .results = absl::MakeSpan(results)});
    EXPECT_FALSE(status.ok());
    return std::string(status.message());
  };
  EXPECT_THAT(message({.temperature = -1.0f}), HasSubstr("rows[0]: temperature"));
  EXPECT_THAT(message({.top_p = 0.0f}), HasSubstr("top_p"));
  EXPECT_THAT(message({.forced_token = 10}), HasSubstr("forced_token"));
  EXPECT_THAT(message({}, 0), HasSubstr("vocab 0"));
  EXPECT_THAT(message({}, 1 << 20), HasSubstr("does not fit the memory reserved"));
}

}  // namespace
}  // namespace verbatim::kernels::cuda
