// The demonstration's page and figures, from made-up answers.
#include "lab/demo_page.h"

#include "gtest/gtest.h"
#include "lab/demo_report.h"

namespace verbatim::lab {
namespace {

DemoResult MadeUpResult(const std::string& text) {
  DemoResult result;
  result.options.prompts = {"p"};
  for (const DemoMode& mode : DemoModes()) {
    DemoModeResult& added = result.modes.emplace_back();
    added.mode = mode;
    added.prompts.resize(1);
    added.prompts[0].Add(text, {1, 2, 3}, "h1");
    added.prompts[0].Add(text, {1, 2, 3}, mode.key == "throughput" ? "h2" : "h1");
    added.requests = 2;
    added.output_tokens = mode.key == "deterministic" ? 90 : 100;
    added.seconds = 2;
    added.block_tokens_per_s = {added.tokens_per_s()};
    added.ttft_ms = {1, 2};
  }
  return result;
}

TEST(DemoPage, HostileTextsStayInsideTheScript) {
  const std::string hostile = "</script><script>alert(1)</script><!-- & \xE2\x80\xA8 \xFF";
  const nlohmann::json data = DemoJson(MadeUpResult(hostile), {});
  const std::string safe = ScriptSafeJson(data);
  EXPECT_EQ(safe.find_first_of("<>&"), std::string::npos);
  for (char c : safe) EXPECT_LT(static_cast<unsigned char>(c), 0x80);
  // The bytes that are UTF-8 come back as they were.
  const std::string back =
      nlohmann::json::parse(safe)["prompts"][0]["modes"]["throughput"]["completions"][0]["text"];
  EXPECT_EQ(back.substr(0, hostile.size() - 1), hostile.substr(0, hostile.size() - 1));

  const std::string page = DemoPage(data);
  EXPECT_NE(page.find(safe), std::string::npos);
  size_t closings = 0;
  for (size_t at = page.find("</script"); at != std::string::npos;
       at = page.find("</script", at + 1)) {
    ++closings;
  }
  EXPECT_EQ(closings, 1U);
  EXPECT_EQ(page.find("src=\"http"), std::string::npos);
  EXPECT_EQ(page.find("href=\"http"), std::string::npos);
}

TEST(DemoJson, HasTheFiguresThatReadersLookFor) {
  const nlohmann::json data = DemoJson(MadeUpResult("text"), {});
  for (const char* mode : {"throughput", "deterministic", "one_at_a_time"}) {
    const nlohmann::json& figures = data["modes"][mode];
    EXPECT_EQ(figures["requests"], 2);
    EXPECT_EQ(figures["prompts"], 1);
    EXPECT_EQ(figures["unique_completions_max"], 1);
    EXPECT_EQ(figures["unique_logit_hashes_max"], mode == std::string("throughput") ? 2 : 1);
    EXPECT_TRUE(figures["first_divergence_token"].is_null());
    EXPECT_TRUE(figures["output_tokens_per_s"].is_number());
  }
  EXPECT_DOUBLE_EQ(data["ratio_deterministic_over_throughput"], 0.9);
  EXPECT_EQ(data["deterministic_promise_kept"], true);
}

TEST(DemoReport, BrokenPromiseIsSaidLoudly) {
  DemoResult result = MadeUpResult("text");
  EXPECT_FALSE(PromiseBroken(result));
  result.modes[2].prompts[0].Add("text", {1, 2, 3}, "h3");
  ASSERT_EQ(result.modes[2].mode.key, "deterministic");
  EXPECT_TRUE(PromiseBroken(result));
  EXPECT_NE(DemoTable(result).find("BROKE ITS PROMISE"), std::string::npos);
}

TEST(DemoReport, NamesTheFirstSplit) {
  DemoResult result = MadeUpResult("text");
  result.modes[0].prompts[0].Add("other", {1, 9}, "h4");
  EXPECT_EQ(result.modes[0].first_divergence_token(), 1);
  EXPECT_EQ(result.modes[0].prompts_that_split(), 1);
  EXPECT_EQ(result.modes[0].unique_completions_max(), 2);
}

}  // namespace
}  // namespace verbatim::lab
