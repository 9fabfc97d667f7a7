// `verbatim compare` against a service whose answers move or stay as the test says.
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <set>

#include "client/client_test_support.h"
#include "client/compare_command.h"
#include "client/compare_report.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace verbatim::client {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

TEST(MarkSplit, ShowsTheSurroundingsOnOneLine) {
  EXPECT_EQ(MarkSplit("abcdef", 3, 10), "abc⟦split⟧def");
  EXPECT_EQ(MarkSplit("abcdef", 3, 2), "…bc⟦split⟧de…");
  EXPECT_EQ(MarkSplit("ab", 2, 5), "ab⟦split⟧");
  EXPECT_EQ(MarkSplit("", 0, 5), "⟦split⟧");
  EXPECT_EQ(MarkSplit("ab", 99, 5), "ab⟦split⟧");
  EXPECT_EQ(MarkSplit("a\nb\t\x1b", 1, 9), "a⟦split⟧\\nb\\t\\x1b");
  // ä has two bytes: neither edge may cut one.
  EXPECT_EQ(MarkSplit("ää|ää", 4, 3), "…ä⟦split⟧|ä…");
  EXPECT_EQ(MarkSplit("ää|ää", 4, 2), "…ä⟦split⟧|…");
}

class CompareTest : public testing::Test {
 protected:
  ~CompareTest() override { std::remove(json_path_.c_str()); }

  CommandOutput Compare(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--target=" + server_.target(), "--json=" + json_path_,
                                       "--repeats=6", "--max-tokens=8", "--background-rate=2000"});
    return RunCaptured(RunCompare, std::move(arguments));
  }
  json Report() const { return json::parse(std::ifstream(json_path_)); }

  FakeServer server_;
  std::string json_path_ = testing::TempDir() + "/compare_" + std::to_string(getpid());
};

TEST_F(CompareTest, ThroughputMayMove) {
  server_.service().throughput_moves = true;
  const CommandOutput output = Compare({"x", "--background-determinism=portable"});
  EXPECT_EQ(output.exit_status, 0) << output.err;
  EXPECT_THAT(output.out, HasSubstr("throughput: the answers split at token 3\n"));
  EXPECT_THAT(output.out, HasSubstr("3 x  012⟦split⟧34567\n"));
  EXPECT_THAT(output.out, HasSubstr("3 x  012⟦split⟧45678\n"));
  EXPECT_THAT(output.out, HasSubstr("throughput: 2 different logit hashes and 2 different texts."));
  EXPECT_THAT(output.out, HasSubstr("pinned: all 6 answers had the same logit bits."));

  const json report = Report();
  const json& throughput = report["modes"]["throughput"];
  EXPECT_EQ(throughput["requests"], 6);
  EXPECT_EQ(throughput["unique_completions"], 2);
  EXPECT_EQ(throughput["unique_logit_hashes"], 2);
  EXPECT_EQ(throughput["first_divergence_token"], 3);
  EXPECT_EQ(throughput["output_tokens"], 48);
  const std::set<std::string> texts = {throughput["completions"][0]["text"],
                                       throughput["completions"][1]["text"]};
  EXPECT_THAT(texts, ElementsAre("01234567", "01245678"));
  EXPECT_EQ(throughput["ttft_ms"]["n"], 6);
  EXPECT_EQ(throughput["itl_ms"]["n"], 42);
  EXPECT_FALSE(throughput["same_every_time"]);
  EXPECT_GT(throughput["background"]["arrivals"], 0);
  const json& deterministic = report["modes"]["deterministic"];
  EXPECT_EQ(deterministic["determinism"], "pinned");
  EXPECT_EQ(deterministic["unique_logit_hashes"], 1);
  EXPECT_TRUE(deterministic["first_divergence_token"].is_null());
  EXPECT_TRUE(deterministic["same_every_time"]);
  EXPECT_TRUE(report["deterministic_promise_kept"]);
  EXPECT_TRUE(report["ratio_deterministic_over_throughput"].is_number());
  EXPECT_EQ(report["request"]["text"], "x");
  EXPECT_EQ(report["request"]["sampling"]["temperature"], 0);
  EXPECT_EQ(report["settings"]["repeats"], 6);
}

TEST_F(CompareTest, ABrokenPromiseIsAFinding) {
  server_.service().strong_moves = true;
  const CommandOutput output = Compare({"x", "--deterministic-policy=portable"});
  EXPECT_EQ(output.exit_status, 1);
  EXPECT_THAT(output.out, HasSubstr("portable: the answers split at token 3\n"));
  EXPECT_THAT(output.out, HasSubstr("throughput: all 6 answers had the same logit bits."));
  EXPECT_FALSE(Report()["deterministic_promise_kept"]);
}

TEST_F(CompareTest, MovedBitsCountWithoutAMovedText) {
  // Three tokens are too few for the texts to split.
  const std::vector<std::string> arguments = {"x",
                                              "--target=" + server_.target(),
                                              "--repeats=4",
                                              "--max-tokens=3",
                                              "--background-rate=0",
                                              "--num-warmups=0"};
  server_.service().throughput_moves = true;
  const CommandOutput weak = RunCaptured(RunCompare, arguments);
  EXPECT_EQ(weak.exit_status, 0) << weak.err;
  EXPECT_THAT(weak.out, HasSubstr("the logit bits moved (2 different hashes), but every text is"));
  EXPECT_THAT(weak.out, Not(HasSubstr("split at")));

  server_.service().strong_moves = true;
  EXPECT_EQ(RunCaptured(RunCompare, arguments).exit_status, 1);
}

TEST_F(CompareTest, FailuresAndMissingHashesProveNothing) {
  CommandOutput output = Compare({"fail"});
  EXPECT_EQ(output.exit_status, 1);
  EXPECT_THAT(output.out, HasSubstr("pinned: 6 requests failed; the first: INVALID_ARGUMENT: text: "
                                    "no. nothing to compare."));
  server_.service().sends_hashes = false;
  output = Compare({"x"});
  EXPECT_EQ(output.exit_status, 1);
  EXPECT_THAT(output.out, HasSubstr("pinned: 6 answers came without a logit hash."));
}

TEST_F(CompareTest, SendsTheSameRequestInBothModes) {
  const CommandOutput output = RunCaptured(
      RunCompare, {"a prompt", "--target=" + server_.target(), "--repeats=3", "--top-p=0.5",
                   "--temperature=0.25", "--background-rate=0", "--num-warmups=0", "--blocks=3"});
  EXPECT_EQ(output.exit_status, 0) << output.err;
  std::map<v1::Determinism, int> count;
  for (const v1::GenerateRequest& request : server_.service().requests()) {
    ++count[request.determinism()];
    EXPECT_EQ(request.text(), "a prompt");
    EXPECT_EQ(request.sampling().top_p(), 0.5F);
    EXPECT_TRUE(request.sampling().has_seed());
  }
  EXPECT_EQ(count[v1::DETERMINISM_THROUGHPUT], 3);
  EXPECT_EQ(count[v1::DETERMINISM_PINNED], 3);
  EXPECT_LE(server_.service().most_in_flight(), 4);
}

TEST_F(CompareTest, ARefusedPolicyIsSaid) {
  server_.service().honours_pinned = false;
  const CommandOutput output = Compare({"x"});
  EXPECT_EQ(output.exit_status, 1);
  EXPECT_THAT(output.err,
              HasSubstr("FAILED_PRECONDITION: the server refuses pinned requests: no pins here"));
}

TEST_F(CompareTest, ExitStatusTellsBadUsageFromNoServer) {
  EXPECT_EQ(Compare({"x", "--repeats=0x", "y"}).exit_status, 2);
  EXPECT_EQ(RunCaptured(RunCompare, {}).exit_status, 2);
  EXPECT_EQ(RunCaptured(RunCompare, {"x", "--repeats=-1"}).exit_status, 2);
  EXPECT_EQ(RunCaptured(RunCompare, {"--help"}).exit_status, 0);
  const CommandOutput nobody =
      RunCaptured(RunCompare, {"x", "--target=127.0.0.1:1", "--connect-timeout-s=0"});
  EXPECT_EQ(nobody.exit_status, 1);
  EXPECT_THAT(nobody.err, HasSubstr("verbatim compare: DEADLINE_EXCEEDED: no server answers"));
}

}  // namespace
}  // namespace verbatim::client
