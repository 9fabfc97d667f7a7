// `verbatim bench` against a service in this process: what it sends, reports and writes.
#include "client/bench_command.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>

#include "client/client_test_support.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace verbatim::client {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

class BenchTest : public testing::Test {
 protected:
  ~BenchTest() override { std::filesystem::remove_all(folder_); }

  CommandOutput Bench(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(),
                     {"--target=" + server_.target(), "--num-prompts=20", "--random-input-len=6",
                      "--random-output-len=4", "--result-dir=" + folder_,
                      "--result-filename=r.json", "--disable-tqdm"});
    return RunCaptured(RunBench, std::move(arguments));
  }
  json Report() const { return json::parse(std::ifstream(folder_ + "/r.json")); }

  FakeServer server_;
  std::string folder_ = testing::TempDir() + "/bench_" + std::to_string(getpid());
};

TEST_F(BenchTest, WritesTheFieldsThatScriptsRead) {
  const CommandOutput output =
      Bench({"--save-result", "--save-detailed", "--goodput", "ttft:100000", "--metadata", "tp=2",
             "date=never", "--metric-percentiles=50,99,99.9", "--request-rate=2000"});
  ASSERT_EQ(output.exit_status, 0) << output.err;
  const json report = Report();
  for (const char* name : {"date", "backend", "endpoint_type", "model_id", "tokenizer_id"}) {
    EXPECT_TRUE(report[name].is_string()) << name;
  }
  EXPECT_EQ(report["model_id"], "fake/model");
  EXPECT_EQ(report["tp"], "2");
  EXPECT_NE(report["date"], "never");
  EXPECT_EQ(report["num_prompts"], 20);
  EXPECT_EQ(report["completed"], 20);
  EXPECT_EQ(report["failed"], 0);
  EXPECT_EQ(report["total_input_tokens"], 120);
  EXPECT_EQ(report["total_cached_input_tokens"], 40);
  EXPECT_EQ(report["total_output_tokens"], 80);
  EXPECT_EQ(report["request_rate"], 2000);
  EXPECT_NEAR(report["offered_request_rate"], 2000, 1);
  EXPECT_TRUE(report["achieved_request_rate"].is_number());
  EXPECT_EQ(report["burstiness"], 1);
  EXPECT_TRUE(report["max_concurrency"].is_null());
  for (const char* name :
       {"duration", "request_throughput", "request_goodput", "output_throughput",
        "total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests"}) {
    EXPECT_TRUE(report[name].is_number()) << name;
    EXPECT_GT(report[name].get<double>(), 0) << name;
  }
  EXPECT_NEAR(
      report["output_throughput"].get<double>() / report["request_throughput"].get<double>(), 4,
      1e-9);
  for (const std::string metric : {"ttft", "tpot", "itl", "e2el"}) {
    for (const std::string figure : {"mean", "median", "std", "p50", "p99", "p99.9"}) {
      EXPECT_TRUE(report[figure + "_" + metric + "_ms"].is_number()) << figure << metric;
    }
    EXPECT_EQ(report["p50_" + metric + "_ms"], report["median_" + metric + "_ms"]);
  }
  for (const char* name : {"input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times",
                           "queue_times", "generated_texts", "errors"}) {
    EXPECT_EQ(report[name].size(), 20U) << name;
  }
  EXPECT_EQ(report["input_lens"][0], 6);
  EXPECT_EQ(report["output_lens"][0], 4);
  EXPECT_EQ(report["itls"][0].size(), 3U);
  EXPECT_EQ(report["generated_texts"][0], "0123");
  EXPECT_EQ(report["errors"][0], "");
  EXPECT_EQ(report["goodput_share"], 1);
  EXPECT_EQ(report["goodput_share_wilson_95"][1], 1);
  EXPECT_EQ(report["server_version"], "fake");
  EXPECT_THAT(output.out, AllOf(HasSubstr("Successful requests:                     20\n"),
                                HasSubstr("Request rate offered (req/s):            2000.00\n"),
                                HasSubstr("P99.9 E2EL (ms):")));
}

TEST_F(BenchTest, ReportsOnlyWhatIsSelectedAndSavesOnlyWhatIsAsked) {
  ASSERT_EQ(Bench({}).exit_status, 0);
  EXPECT_FALSE(std::filesystem::exists(folder_));
  const CommandOutput output = Bench({"--save-result", "--percentile-metrics=e2el"});
  const json report = Report();
  EXPECT_TRUE(report["request_goodput"].is_null());
  EXPECT_EQ(report["request_rate"], "inf");
  EXPECT_TRUE(report.contains("p99_e2el_ms"));
  EXPECT_FALSE(report.contains("p99_ttft_ms"));
  EXPECT_TRUE(report.contains("mean_ttft_ms"));
  for (const char* name : {"ttfts", "generated_texts", "errors"}) {
    EXPECT_FALSE(report.contains(name)) << name;
  }
  EXPECT_THAT(output.out, testing::Not(HasSubstr("TTFT")));
}

TEST_F(BenchTest, KeepsToItsConcurrency) {
  ASSERT_EQ(Bench({"--max-concurrency=3", "--save-result"}).exit_status, 0);
  EXPECT_LE(server_.service().most_in_flight(), 3);
  const json closed = Report();
  EXPECT_EQ(closed["max_concurrency"], 3);
  EXPECT_TRUE(closed["offered_request_rate"].is_null());
  EXPECT_LE(closed["max_concurrent_requests"], 3);
  // A given rate is open loop: what waits for a slot is counted as waiting.
  ASSERT_EQ(Bench({"--max-concurrency=1", "--request-rate=100000", "--save-result",
                   "--percentile-metrics=client_queue_time,e2el,e2el_including_client_queue"})
                .exit_status,
            0);
  const json open = Report();
  EXPECT_GT(open["median_client_queue_time_ms"], 0);
  EXPECT_GE(open["median_e2el_ms"], open["median_client_queue_time_ms"]);
  EXPECT_EQ(open["p99_e2el_ms"], open["p99_e2el_including_client_queue_ms"]);
}

TEST_F(BenchTest, SendsExactlyTheDeterministicShare) {
  const CommandOutput output = Bench({"--deterministic-fraction=0.3", "--determinism=portable",
                                      "--save-result", "--save-detailed"});
  ASSERT_EQ(output.exit_status, 0) << output.err;
  std::map<v1::Determinism, int> sent;
  for (const auto& request : server_.service().requests()) ++sent[request.determinism()];
  EXPECT_EQ(sent[v1::DETERMINISM_PORTABLE], 6);
  EXPECT_EQ(sent[v1::DETERMINISM_THROUGHPUT], 14);
  const json report = Report();
  EXPECT_EQ(report["deterministic_fraction"], 0.3);
  const std::vector<std::string> policies = report["request_policies"];
  EXPECT_FALSE(std::is_sorted(policies.begin(), policies.end()));  // mixed, not one after the other
  EXPECT_FALSE(std::is_sorted(policies.rbegin(), policies.rend()));
  const json& portable = report["policies"]["portable"];
  EXPECT_EQ(portable["requests"], 6);
  EXPECT_EQ(portable["total_output_tokens"], 24);
  EXPECT_DOUBLE_EQ(portable["share"], 0.3);
  EXPECT_EQ(portable["numerics_id"], "id");
  EXPECT_TRUE(portable["p99_ttft_ms"].is_number());
  EXPECT_EQ(report["policies"]["throughput"]["requests"], 14);
  EXPECT_THAT(output.out, HasSubstr("By Policy"));
}

TEST_F(BenchTest, SendsWhatTheFlagsSay) {
  ASSERT_EQ(Bench({"--num-prompts=3", "--num-warmups=2", "--top-k=5", "--sampling-seed=9",
                   "--request-id-prefix=me-"})
                .exit_status,
            0);
  const std::vector<v1::GenerateRequest> requests = server_.service().requests();
  ASSERT_EQ(requests.size(), 5U);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(requests[i].cache_salt(), i < 2 ? "warmup" : "");
    EXPECT_EQ(requests[i].sampling().max_tokens(), 4);
    EXPECT_EQ(requests[i].sampling().temperature(), 0);
    EXPECT_EQ(requests[i].sampling().top_k(), 5);
    EXPECT_EQ(requests[i].sampling().seed(), 9U);
    EXPECT_TRUE(requests[i].sampling().ignore_eos());
    if (i >= 2) {
      EXPECT_THAT(requests[i].request_id(), StartsWith("me-"));
    }
  }
}

TEST_F(BenchTest, FailedRequestsAreCountedAndShown) {
  const std::string path = folder_ + "-prompts.jsonl";
  std::ofstream(path) << "{\"prompt\": \"good\"}\n{\"prompt\": \"fail\"}\n{\"prompt\": \"fail\"}\n";
  CommandOutput output =
      Bench({"--num-prompts=3", "--dataset-name=custom", "--dataset-path=" + path,
             "--disable-shuffle", "--save-result", "--save-detailed", "--custom-output-len=2"});
  EXPECT_EQ(output.exit_status, 0);
  EXPECT_THAT(output.err, HasSubstr("request 1: INVALID_ARGUMENT: text: no\n"));
  const json report = Report();
  EXPECT_EQ(report["completed"], 1);
  EXPECT_EQ(report["failed"], 2);
  EXPECT_DOUBLE_EQ(report["failed_share"], 2.0 / 3);
  EXPECT_EQ(report["errors"][2], "INVALID_ARGUMENT: text: no");
  EXPECT_EQ(report["output_lens"], json({2, 0, 0}));
  EXPECT_EQ(report["input_lens"][1], 1);  // counted by Tokenize

  std::ofstream(path) << "{\"prompt\": \"fail\"}\n";
  output = Bench({"--dataset-name=custom", "--dataset-path=" + path});
  EXPECT_EQ(output.exit_status, 1);
  EXPECT_THAT(output.err, HasSubstr("verbatim bench: INVALID_ARGUMENT: text: no"));
  std::ofstream(path) << "nonsense";
  output = Bench({"--dataset-name=custom", "--dataset-path=" + path});
  EXPECT_EQ(output.exit_status, 1);
  EXPECT_THAT(output.err, HasSubstr(path + ":1: "));
  std::filesystem::remove(path);
}

TEST_F(BenchTest, AppendsLines) {
  ASSERT_EQ(Bench({"--append-result"}).exit_status, 0);
  ASSERT_EQ(Bench({"--append-result", "--num-prompts=2"}).exit_status, 0);
  std::ifstream file(folder_ + "/r.json");
  std::vector<json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(json::parse(line));
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0]["completed"], 20);
  EXPECT_EQ(lines[1]["completed"], 2);
}

TEST_F(BenchTest, NamesItsFileAfterTheLoad) {
  const CommandOutput output = Bench({"--save-result", "--result-filename=", "--label=mine",
                                      "--request-rate=1000", "--max-concurrency=8"});
  ASSERT_EQ(output.exit_status, 0) << output.err;
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    names.push_back(entry.path().filename().string());
  }
  ASSERT_EQ(names.size(), 1U);
  EXPECT_THAT(names[0], AllOf(StartsWith("mine-1000qps-concurrency8-model-"), EndsWith(".json")));
}

TEST_F(BenchTest, ExitStatusTellsBadUsageFromNoServer) {
  EXPECT_EQ(Bench({"--num-prompts=0"}).exit_status, 2);
  EXPECT_EQ(Bench({"--unknown"}).exit_status, 2);
  EXPECT_EQ(Bench({"--help"}).exit_status, 0);
  const CommandOutput nobody = Bench({"--target=127.0.0.1:1", "--connect-timeout-s=0"});
  EXPECT_EQ(nobody.exit_status, 1);
  EXPECT_THAT(nobody.err, HasSubstr("no server answers at 127.0.0.1:1"));
  const CommandOutput unwritable =
      Bench({"--save-result", "--result-dir=/proc/nowhere", "--num-prompts=1"});
  EXPECT_EQ(unwritable.exit_status, 1);
  EXPECT_THAT(unwritable.err, HasSubstr("/proc/nowhere/r.json"));
}

}  // namespace
}  // namespace verbatim::client
