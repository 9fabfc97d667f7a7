// Flags of the client's commands: defaults, what follows from them, and bad values.
#include "client/bench_options.h"

#include <cmath>

#include "client/compare_options.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace verbatim::client {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using testing::StartsWith;

// Parses and checks; the flags of `options` keep what was given.
template <typename Options>
absl::Status Take(Options* options, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "command");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  flags::FlagSet flags = options->Flags();
  const auto positional = flags.Parse(static_cast<int>(argv.size()), argv.data());
  return positional.ok() ? options->Check(*positional) : positional.status();
}

TEST(BenchOptions, DefaultsAreUsable) {
  BenchOptions options;
  ASSERT_EQ(Take(&options, {}), absl::OkStatus());
  EXPECT_TRUE(std::isinf(options.request_rate));
  EXPECT_FALSE(options.closed_loop());
  EXPECT_EQ(options.dataset.num_prompts, 100);
  EXPECT_TRUE(options.sampling.ignore_eos);  // the prompts are random
  EXPECT_THAT(options.percentiles, ElementsAre(99));
  EXPECT_THAT(options.percentile_metrics, ElementsAre("ttft", "tpot", "itl", "e2el"));
  EXPECT_FALSE(options.goodput.given());
  EXPECT_EQ(options.other_policy(), v1::DETERMINISM_UNSPECIFIED);
}

TEST(BenchOptions, TakesTheFormsThatScriptsUse) {
  BenchOptions options;
  ASSERT_EQ(
      Take(&options, {"--goodput", "ttft:200", "tpot:50", "--metadata", "version=0.3.3", "tp=a=b",
                      "--metric-percentiles", "25,50,99.9", "--percentile-metrics", "ttft,e2el",
                      "--max-concurrency", "8", "--burstiness", "inf", "--custom-output-len", "-1",
                      "--request_rate=inf", "--deterministic-fraction=0.25", "--seed=7"}),
      absl::OkStatus());
  EXPECT_EQ(options.goodput.ttft_ms, 200);
  EXPECT_EQ(options.goodput.tpot_ms, 50);
  EXPECT_THAT(options.metadata, ElementsAre(Pair("version", "0.3.3"), Pair("tp", "a=b")));
  EXPECT_THAT(options.percentiles, ElementsAre(25, 50, 99.9));
  EXPECT_THAT(options.percentile_metrics, ElementsAre("ttft", "e2el"));
  EXPECT_TRUE(options.closed_loop());
  EXPECT_EQ(options.dataset.custom_output_len, -1);
  EXPECT_EQ(options.dataset.seed, 7U);
  EXPECT_FALSE(options.sampling.seed.has_value());
  EXPECT_EQ(options.strong_policy(), v1::DETERMINISM_PINNED);
  EXPECT_EQ(options.other_policy(), v1::DETERMINISM_THROUGHPUT);
}

TEST(BenchOptions, GeneralLengthsStandForEveryDataSet) {
  BenchOptions options;
  ASSERT_EQ(Take(&options, {"--input-len=7", "--output-len=9", "--determinism=portable"}),
            absl::OkStatus());
  EXPECT_EQ(options.dataset.random_input_len, 7);
  EXPECT_EQ(options.dataset.random_output_len, 9);
  EXPECT_EQ(options.dataset.sharegpt_output_len, 9);
  EXPECT_EQ(options.dataset.custom_output_len, 9);
  EXPECT_EQ(options.other_policy(), v1::DETERMINISM_PORTABLE);
}

TEST(BenchOptions, RampUpReplacesTheRate) {
  BenchOptions options;
  ASSERT_EQ(Take(&options, {"--ramp-up-strategy=exponential", "--ramp-up-start-rps=1",
                            "--ramp-up-end-rps=10", "--max-concurrency=4"}),
            absl::OkStatus());
  ASSERT_TRUE(options.ramp_up.has_value());
  EXPECT_TRUE(options.ramp_up->exponential);
  EXPECT_EQ(options.ramp_up->end_per_second, 10);
  EXPECT_FALSE(options.closed_loop());
}

TEST(BenchOptions, ErrorsNameTheFlag) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"stray"}, "'stray': unexpected argument"},
      {{"--target="}, "--target: is empty"},
      {{"--dataset-name=sonnet"}, "--dataset-name: 'sonnet' is not one of"},
      {{"--dataset-name=custom"}, "--dataset-path: is needed"},
      {{"--dataset-name=sharegpt"}, "--dataset-path: is needed"},
      {{"--dataset-path=x"}, "--dataset-path: the random data set"},
      {{"--custom-output-len=0"}, "--custom-output-len: 0"},
      {{"--custom-output-len=-2"}, "--custom-output-len: -2"},
      {{"--percentile-metrics=ttft,latency"}, "--percentile-metrics: 'latency' is not one of"},
      {{"--metric-percentiles=50,101"}, "--metric-percentiles: '101' is not in"},
      {{"--metric-percentiles="}, "--metric-percentiles: '' is not in"},
      {{"--goodput=itl:4"}, "--goodput: 'itl:4' is not"},
      {{"--goodput"}, "--goodput: needs a value"},
      {{"--metadata=x"}, "--metadata: 'x' is not KEY=VALUE"},
      {{"--metadata==x"}, "--metadata: '=x' is not KEY=VALUE"},
      {{"--determinism=strict"}, "--determinism: 'strict' is not one of"},
      {{"--determinism=throughput", "--deterministic-fraction=0.5"}, "--deterministic-fraction: "},
      {{"--ramp-up-strategy=steep", "--ramp-up-start-rps=1", "--ramp-up-end-rps=2"},
       "--ramp-up-strategy: 'steep'"},
      {{"--ramp-up-strategy=linear", "--ramp-up-start-rps=1"}, "--ramp-up-strategy: needs"},
      {{"--ramp-up-strategy=linear", "--ramp-up-start-rps=3", "--ramp-up-end-rps=2"},
       "--ramp-up-start-rps: is above"},
      {{"--ramp-up-start-rps=3"}, "--ramp-up-start-rps: needs --ramp-up-strategy"},
      {{"--ramp-up-strategy=linear", "--ramp-up-start-rps=1", "--ramp-up-end-rps=2",
        "--request-rate=4"},
       "--request-rate: "},
  };
  for (const auto& [arguments, message] : cases) {
    BenchOptions options;
    const absl::Status status = Take(&options, arguments);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

// Which of these texts a numeric flag takes: -1, 0, a huge number, nan, inf, junk, nothing.
constexpr const char* kTexts[] = {"-1",  "0",   "1e300", "99999999999999999999",
                                  "nan", "inf", "many",  ""};

struct NumericFlag {
  std::string name;
  std::vector<std::string> taken;
  std::vector<std::string> with;  // flags that it needs beside it
};

template <typename Options>
void ExpectOnlyTaken(const std::vector<NumericFlag>& flags,
                     const std::vector<std::string>& positional) {
  for (const NumericFlag& flag : flags) {
    for (const std::string text : kTexts) {
      Options options;
      std::vector<std::string> arguments = flag.with;
      arguments.push_back(absl::StrCat("--", flag.name, "=", text));
      arguments.insert(arguments.end(), positional.begin(), positional.end());
      const absl::Status status = Take(&options, arguments);
      const bool taken = std::find(flag.taken.begin(), flag.taken.end(), text) != flag.taken.end();
      EXPECT_EQ(status.ok(), taken)
          << arguments.back() << " " << flag.name << "=" << text << " " << status;
      if (!status.ok()) {
        EXPECT_THAT(std::string(status.message()), StartsWith(absl::StrCat("--", flag.name, ": ")));
      }
    }
  }
}

const std::vector<NumericFlag> kSamplingFlags = {
    {"temperature", {"0", "99999999999999999999"}},
    {"top-k", {"-1", "0"}},
    {"top-p", {}},
    {"min-p", {"0"}},
    {"presence-penalty", {"-1", "0"}},
    {"frequency-penalty", {"-1", "0"}},
    {"repetition-penalty", {}},
};

TEST(BenchOptions, EveryNumericFlagTakesOnlyItsRange) {
  std::vector<NumericFlag> flags = {
      {"connect-timeout-s", {"0"}},
      {"request-rate", {"1e300", "99999999999999999999", "inf"}},
      {"burstiness", {"1e300", "99999999999999999999", "inf"}},
      {"max-concurrency", {}},
      {"ramp-up-start-rps", {}, {"--ramp-up-strategy=linear", "--ramp-up-end-rps=9"}},
      {"ramp-up-end-rps",
       {"1e300", "99999999999999999999"},
       {"--ramp-up-strategy=linear", "--ramp-up-start-rps=1"}},
      {"num-prompts", {}},
      {"num-warmups", {"0"}},
      {"seed", {"0"}},
      {"sampling-seed", {"0"}},
      {"deterministic-fraction", {"0"}},
      {"random-input-len", {}},
      {"random-output-len", {}},
      {"random-range-ratio", {"0"}},
      {"random-prefix-len", {"0"}},
      {"sharegpt-output-len", {}},
      {"custom-output-len", {"-1"}},
      {"input-len", {}},
      {"output-len", {}},
      {"metric-percentiles", {"0"}},
  };
  flags.insert(flags.end(), kSamplingFlags.begin(), kSamplingFlags.end());
  ExpectOnlyTaken<BenchOptions>(flags, {});
}

TEST(CompareFlags, EveryNumericFlagTakesOnlyItsRange) {
  std::vector<NumericFlag> flags = {
      {"connect-timeout-s", {"0"}},  {"repeats", {}},
      {"max-concurrency", {}},       {"blocks", {}},
      {"num-warmups", {"0"}},        {"background-rate", {"0"}},
      {"background-max-tokens", {}}, {"background-max-concurrency", {}},
      {"background-seed", {"0"}},    {"max-tokens", {}},
      {"min-tokens", {"0"}},         {"seed", {"0"}},
  };
  flags.insert(flags.end(), kSamplingFlags.begin(), kSamplingFlags.end());
  ExpectOnlyTaken<CompareFlags>(flags, {"prompt"});
}

TEST(CompareFlags, BadUsageIsNamed) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "needs exactly one PROMPT"},
      {{"a", "b"}, "needs exactly one PROMPT"},
      {{"a", "--chat", "--raw"}, "--chat and --raw exclude each other"},
      {{"a", "--raw", "--system=s"}, "--system: "},
      {{"a", "--deterministic-policy=throughput"}, "--deterministic-policy: "},
      {{"a", "--deterministic-policy=firm"}, "--deterministic-policy: 'firm' is not one of"},
      {{"a", "--background-prompts=/nonexistent"}, "--background-prompts: /nonexistent"},
      {{"a", "--logit-bias=3=101"}, "--logit-bias: 101 of token 3"},
      {{"a", "--logit-bias=3=nan"}, "--logit-bias: nan of token 3"},
      {{"a", "--n=2"}, "--n: unknown flag"},
  };
  for (const auto& [arguments, message] : cases) {
    CompareFlags flags;
    const absl::Status status = Take(&flags, arguments);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

TEST(CompareFlags, RequestIsTheSameEachTime) {
  CompareFlags greedy;
  ASSERT_EQ(Take(&greedy, {"p"}), absl::OkStatus());
  EXPECT_EQ(greedy.options.request.sampling().temperature(), 0);
  EXPECT_EQ(greedy.options.request.sampling().max_tokens(), 64);
  EXPECT_FALSE(greedy.options.request.sampling().has_seed());
  CompareFlags sampled;
  ASSERT_EQ(Take(&sampled, {"p", "--temperature=0.7", "--repeats=1"}), absl::OkStatus());
  EXPECT_TRUE(sampled.options.request.sampling().has_seed());
  EXPECT_EQ(sampled.options.blocks, 1);
}

}  // namespace
}  // namespace verbatim::client
