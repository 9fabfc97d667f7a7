// Likelihoods against double precision, intervals against a known sample, and a tiny model's
// perplexity.
#include "evaluate/perplexity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/numerics/philox.h"

namespace verbatim::evaluate {
namespace {

using ::testing::HasSubstr;

constexpr char kTiny[] = "tests/fixtures/reference/gguf_llama_f32.gguf";

TEST(NegativeLogLikelihood, IsThatOfTheSoftmax) {
  std::vector<float> logits;
  for (int i = 0; i < 1000; ++i) {
    logits.push_back(static_cast<float>(numerics::PhiloxWord(1, 0, 0, i) * 0x1p-32 * 40 - 20));
  }
  long double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<long double>(logit));
  for (const int token : {0, 1, 500, 999}) {
    const auto expected = static_cast<double>(std::log(sum) - logits[token]);
    EXPECT_NEAR(NegativeLogLikelihood(logits, token), expected, 1e-12) << token;
  }
}

TEST(NegativeLogLikelihood, BearsExtremes) {
  EXPECT_DOUBLE_EQ(NegativeLogLikelihood({1e30f, -1e30f}, 0), 0);
  EXPECT_DOUBLE_EQ(NegativeLogLikelihood({0, -100}, 1), 100);
  EXPECT_NEAR(NegativeLogLikelihood({3, 3, 3, 3}, 2), std::log(4.0), 1e-15);
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_TRUE(std::isinf(NegativeLogLikelihood({0, -inf}, 1)));
  EXPECT_TRUE(std::isnan(NegativeLogLikelihood({0, std::nanf("")}, 0)));
}

TEST(Summarise, TheIntervalIsAboutTheNormalOne) {
  std::vector<double> nll;
  double sum = 0, squares = 0;
  constexpr int kWindows = 400;
  for (int i = 0; i < kWindows; ++i) {
    nll.push_back(2 + numerics::PhiloxWord(2, 0, 0, i) * 0x1p-32);
    sum += nll.back();
    squares += nll.back() * nll.back();
  }
  const double mean = sum / kWindows;
  const double error = std::sqrt((squares / kWindows - mean * mean) / kWindows);
  const Perplexity result = Summarise(nll, 511, 1, 2000);
  EXPECT_EQ(result.tokens, kWindows * 511);
  EXPECT_NEAR(result.mean_nll, mean, 1e-12);
  EXPECT_NEAR(result.perplexity, std::exp(mean), 1e-10);
  // A percentile of 2000 draws is known to some 0.1 standard errors; 0.3 is three of them.
  EXPECT_NEAR(std::log(result.low), mean - 1.96 * error, 0.3 * error);
  EXPECT_NEAR(std::log(result.high), mean + 1.96 * error, 0.3 * error);
  const Perplexity again = Summarise(nll, 511, 1, 2000);
  EXPECT_EQ(again.low, result.low);
  EXPECT_NE(Summarise(nll, 511, 2, 2000).low, result.low);
}

TEST(Summarise, OneWindowHasNoInterval) {
  const Perplexity result = Summarise({1.5}, 10, 1, 100);
  EXPECT_DOUBLE_EQ(result.low, result.perplexity);
  EXPECT_DOUBLE_EQ(result.high, result.perplexity);
}

TEST(Compare, WindowsAreComparedInPairs) {
  // Windows scatter by 1 nat, but each is 0.1 ± 0.01 nats harder than the baseline's.
  std::vector<double> nll, baseline;
  for (int i = 0; i < 100; ++i) {
    baseline.push_back(2 + numerics::PhiloxWord(4, 0, 0, i) * 0x1p-32);
    nll.push_back(baseline.back() + (i % 2 == 0 ? 0.09 : 0.11));
  }
  const auto result = Compare(nll, baseline, 1, 1000);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_NEAR(result->ratio, std::exp(0.1), 1e-9);
  // A standard error of 0.001; the limits are some two of them away, and no more than four.
  EXPECT_GT(result->low, std::exp(0.096));
  EXPECT_LT(result->low, std::exp(0.099));
  EXPECT_LT(result->high, std::exp(0.104));
  EXPECT_GT(result->high, std::exp(0.101));
  baseline.pop_back();
  EXPECT_FALSE(Compare(nll, baseline, 1, 1000).ok());
  EXPECT_FALSE(Compare({}, {}, 1, 1000).ok());
}

class MeasureTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto opened = model::Checkpoint::Open(kTiny);
    ASSERT_TRUE(opened.ok()) << opened.status();
    checkpoint_ = *std::move(opened);
    for (int w = 0; w < 5; ++w) {
      std::vector<int32_t> window;
      for (int i = 0; i < 24; ++i) {
        window.push_back(static_cast<int32_t>(numerics::PhiloxWord(3, w, 0, i) %
                                              checkpoint_->config().vocab_size));
      }
      windows_.push_back(std::move(window));
    }
  }
  Perplexity Measure(int threads, int64_t max_batch_rows) {
    PerplexityOptions options;
    options.threads = threads;
    options.window_tokens = 24;
    options.max_batch_rows = max_batch_rows;
    const auto result = MeasurePerplexity(*checkpoint_, windows_, options);
    EXPECT_TRUE(result.ok()) << result.status();
    return *result;
  }

  std::unique_ptr<model::Checkpoint> checkpoint_;
  std::vector<std::vector<int32_t>> windows_;
};

// The model is random and so are the tokens: their perplexity lies near, and above, the size of
// the vocabulary.
TEST_F(MeasureTest, RandomTokensAreAsHardAsTheyMustBe) {
  const Perplexity result = Measure(1, 24);
  EXPECT_EQ(result.tokens, 5 * 23);
  const auto vocab = static_cast<double>(checkpoint_->config().vocab_size);
  EXPECT_GT(result.perplexity, vocab);
  EXPECT_LT(result.low, result.perplexity);
  EXPECT_GT(result.high, result.perplexity);
}

// Portable logits have the same bits in every batch and with every number of threads.
TEST_F(MeasureTest, BatchesAndThreadsDoNotShow) {
  const Perplexity alone = Measure(1, 24);
  EXPECT_EQ(Measure(3, 24).window_nll, alone.window_nll);
  EXPECT_EQ(Measure(2, 100).window_nll, alone.window_nll);
}

TEST_F(MeasureTest, CapacityIsForMixturesInThroughputMode) {
  PerplexityOptions options;
  options.window_tokens = 24;
  options.moe_capacity_factor = 0.5;
  EXPECT_THAT(std::string(MeasurePerplexity(*checkpoint_, windows_, options).status().message()),
              HasSubstr("not a mixture"));
  auto mixture = model::Checkpoint::Open("tests/fixtures/reference/hf_mixtral");
  ASSERT_TRUE(mixture.ok()) << mixture.status();
  EXPECT_THAT(std::string(MeasurePerplexity(**mixture, windows_, options).status().message()),
              HasSubstr("policy portable has none"));
  options.mode.policy = kernels::Policy::kThroughput;
  const auto limited = MeasurePerplexity(**mixture, windows_, options);
  ASSERT_TRUE(limited.ok()) << limited.status();
  // At most half of the slots fit.
  EXPECT_GE(2 * limited->moe_lost_slots, limited->moe_slots - 2 * 5 * 8);
  EXPECT_LT(limited->moe_lost_slots, limited->moe_slots);
  options.moe_capacity_factor = 0;
  const auto free = MeasurePerplexity(**mixture, windows_, options);
  ASSERT_TRUE(free.ok()) << free.status();
  EXPECT_EQ(free->moe_slots, limited->moe_slots);
  EXPECT_EQ(free->moe_lost_slots, 0);
  EXPECT_NE(free->mean_nll, limited->mean_nll);
}

TEST_F(MeasureTest, NamesWhatIsWrong) {
  PerplexityOptions options;
  options.window_tokens = 24;
  windows_[3].pop_back();
  EXPECT_THAT(std::string(MeasurePerplexity(*checkpoint_, windows_, options).status().message()),
              HasSubstr("window 3 has 23 tokens"));
  options.window_tokens = 1;
  EXPECT_FALSE(MeasurePerplexity(*checkpoint_, windows_, options).ok());
  options.window_tokens = 1 << 20;
  EXPECT_THAT(std::string(MeasurePerplexity(*checkpoint_, windows_, options).status().message()),
              HasSubstr("positions"));
  options.window_tokens = 24;
  EXPECT_FALSE(MeasurePerplexity(*checkpoint_, {}, options).ok());
}

}  // namespace
}  // namespace verbatim::evaluate
