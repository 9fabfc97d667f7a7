// Tests of the trace format: what is written is read back, and nothing else is accepted.
#include "trace/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "nlohmann/json.hpp"

namespace verbatim::trace {
namespace {

using kernels::ActivationType;
using kernels::Policy;
using nlohmann::json;
using testing::HasSubstr;

const kernels::NumericMode kFast = {Policy::kThroughput, ActivationType::kBF16};

// Two tokens answered to a prompt of five: page 0 (four tokens) was written by run 1 in step 3,
// beside a neighbour; the answer computed the rest in steps 7 and 8.
Trace Small() {
  Trace trace;
  trace.identity = {"0.1.0", "abc", "cpu avx512, 2 threads", "v1/throughput"};
  trace.configuration = {.page_tokens = 4,
                         .kv_cache_dtype = kernels::DType::kBF16,
                         .logit_slice_rows = 64,
                         .max_model_len = 128};
  trace.prompt_tokens = 5;
  trace.tokens = {10, 11, 12, 13, 14, 15, 16};
  trace.own_runs = 1;
  trace.runs = {{.prefix = {{.run = 1, .page = 0}}, .positions = 6},
                {.prefix = {}, .positions = 4}};
  trace.steps.push_back({.number = 3,
                         .mode = {Policy::kPortable, ActivationType::kF32},
                         .spans = {{1, 30}, {9, 0}},
                         .own = {{.span = 1, .run = 1, .rows = 4}},
                         .logit_rows = 1});
  trace.steps.push_back({.number = 7,
                         .mode = kFast,
                         .spans = {{1, 4}, {1, 50}},
                         .own = {{.span = 0, .run = 0, .rows = 1}},
                         .logit_rows = 2,
                         .logit_index = 0,
                         .cuts = {{.span = 0, .kv_head = 1, .row_begin = 0, .positions = {64}}}});
  trace.steps.push_back({.number = 8,
                         .mode = kFast,
                         .spans = {{1, 51}, {1, 5}},
                         .own = {{.span = 1, .run = 0, .rows = 1}},
                         .logit_rows = 2,
                         .logit_index = 1});
  trace.kernels = {
      {.mode = {Policy::kPortable, ActivationType::kF32}, .rows = 10, .kernels = {{"qkv", "tree"}}},
      {.mode = kFast, .rows = 2, .kernels = {{"qkv", "bf16"}, {"o", "onednn"}}},
      {.mode = kFast, .logits = true, .rows = 2, .kernels = {{"lm_head", "bf16"}}}};
  trace.logit_rows = {{1, 2}, {0xfedcba9876543210, 0}};
  trace.layers = {{{3, 4}, {5, 6}}, {{7, 8}, {9, 10}}};
  trace.logits_sha256 = "00ff";
  trace.cached_tokens = 4;
  return trace;
}

TEST(TraceTest, RoundTrip) {
  const Trace trace = Small();
  ASSERT_TRUE(CheckConsistency(trace).ok()) << CheckConsistency(trace);
  const std::string text = ToJson(trace);
  const auto parsed = Parse(text, "t.json");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->identity, trace.identity);
  EXPECT_EQ(parsed->configuration, trace.configuration);
  EXPECT_EQ(parsed->tokens, trace.tokens);
  EXPECT_EQ(parsed->runs, trace.runs);
  EXPECT_EQ(parsed->steps, trace.steps);
  EXPECT_EQ(parsed->kernels, trace.kernels);
  EXPECT_EQ(parsed->logit_rows, trace.logit_rows);
  EXPECT_EQ(parsed->layers, trace.layers);
  EXPECT_EQ(parsed->cached_tokens, 4);
  EXPECT_EQ(ToJson(*parsed), text);
  // White space and the order of keys mean nothing; the canonical form comes back.
  const auto pretty = Parse(json::parse(text).dump(2), "t.json");
  ASSERT_TRUE(pretty.ok()) << pretty.status();
  EXPECT_EQ(ToJson(*pretty), text);
}

// The same of a model with three experts, two a token, in layers 1 and 2. Step 7's own row lost its
// second expert in layer 2, step 3's third row was rerouted in layer 1.
Trace SmallMixture() {
  Trace trace = Small();
  trace.mixture = {.num_experts = 3, .experts_per_token = 2, .layers = {1, 2}};
  trace.steps[0].routing = {
      {.experts = {0, 1, 1, 0, 0, 2, 2, 0}, .wanted = {{5, 1}}, .tokens = {{0, 8}, {1, 5}, {2, 7}}},
      {.experts = {0, 1, 0, 1, 0, 1, 0, 1}, .tokens = {{0, 10}, {1, 9}}}};
  trace.steps[1].routing = {{.experts = {2, 1}, .tokens = {{1, 2}, {2, 1}}},
                            {.experts = {2, -1}, .wanted = {{1, 0}}, .tokens = {{0, 1}, {2, 1}}}};
  trace.steps[2].routing = {{.experts = {2, 1}, .tokens = {{1, 1}, {2, 1}}},
                            {.experts = {0, 1}, .tokens = {{0, 1}, {1, 2}}}};
  for (int32_t tokens : {1, 2}) {
    trace.kernels.push_back({.mode = kFast,
                             .experts = true,
                             .rows = tokens,
                             .kernels = {{"expert_gate_up", "tree"}, {"expert_down", "tree"}}});
  }
  return trace;
}

TEST(TraceTest, RoundTripOfAMixtureOfExperts) {
  const Trace trace = SmallMixture();
  ASSERT_TRUE(CheckConsistency(trace).ok()) << CheckConsistency(trace);
  const std::string text = ToJson(trace);
  const auto parsed = Parse(text, "t.json");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->mixture, trace.mixture);
  EXPECT_EQ(parsed->steps, trace.steps);
  EXPECT_EQ(parsed->kernels, trace.kernels);
  EXPECT_EQ(ToJson(*parsed), text);
  EXPECT_THAT(text, HasSubstr("\"routing\":[[[2,1],[],[1,2,2,1]],[[2,-1],[1,0],[0,1,2,1]]]"));
  const LayerRouting& lost = parsed->steps[1].routing[1];
  EXPECT_EQ(lost.WantedAt(0), 2);
  EXPECT_EQ(lost.WantedAt(1), 0);
  EXPECT_EQ(lost.TokensOf(1), 0);
  // A dense model's trace has nothing of this.
  for (const char* key : {"mixture", "routing", "experts"}) {
    EXPECT_THAT(ToJson(Small()), testing::Not(HasSubstr(key)));
  }
}

TEST(TraceTest, RoundTripOfOneThatCannotBeReplayed) {
  Trace trace = Small();
  trace.DropSteps("a page was written before recording began");
  const auto parsed = Parse(ToJson(trace), "t.json");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_FALSE(parsed->replayable());
  EXPECT_EQ(parsed->not_replayable, trace.not_replayable);
}

// The trace after `change` was made to its JSON must be refused, with an error that names `field`.
void ExpectRefused(const std::function<void(json&)>& change, const std::string& field,
                   const Trace& trace = Small()) {
  json document = json::parse(ToJson(trace));
  change(document);
  const auto parsed = Parse(document.dump(), "t.json");
  ASSERT_FALSE(parsed.ok()) << field;
  EXPECT_TRUE(absl::IsInvalidArgument(parsed.status()));
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("t.json"));
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(field));
}

TEST(TraceTest, RefusesOtherFormatsAndVersions) {
  ExpectRefused([](json& t) { t["format"] = "something"; }, "format");
  ExpectRefused([](json& t) { t["version"] = 2; }, "version: 2 is not 1");
  ExpectRefused([](json& t) { t["version"] = "1"; }, "version");
}

TEST(TraceTest, RefusesUnknownMissingAndMistypedFields) {
  const json whole = json::parse(ToJson(Small()));
  for (const auto& [key, value] : whole.items()) {
    ExpectRefused([&](json& t) { t.erase(key); }, key);
    ExpectRefused([&](json& t) { t[key] = json::object({{"a", 1.5}}); }, key);
  }
  for (const auto& [key, value] : whole["steps"][1].items()) {
    ExpectRefused([&](json& t) { t["steps"][1].erase(key); }, absl::StrCat("steps[1].", key));
    ExpectRefused([&](json& t) { t["steps"][1][key] = nullptr; }, absl::StrCat("steps[1].", key));
  }
  ExpectRefused([](json& t) { t["extra"] = 1; }, "extra: is not a known field");
  ExpectRefused([](json& t) { t["runs"][0]["x"] = 1; }, "runs[0].x");
  ExpectRefused([](json& t) { t["identity"]["x"] = ""; }, "identity.x");
  ExpectRefused([](json& t) { t["configuration"]["page_tokens"] = 0; }, "page_tokens");
  ExpectRefused([](json& t) { t["configuration"]["kv_cache_dtype"] = "int4"; }, "kv_cache_dtype");
  ExpectRefused([](json& t) { t["determinism"] = "perhaps"; }, "determinism");
  ExpectRefused([](json& t) { t["steps"][1]["mode"] = "fast"; }, "steps[1].mode");
  ExpectRefused([](json& t) { t["tokens"][2] = -1; }, "tokens");
  ExpectRefused([](json& t) { t["tokens"][2] = uint64_t{1} << 63; }, "tokens");
  ExpectRefused([](json& t) { t["logit_row_fingerprints"][0] = "12"; },
                "logit_row_fingerprints[0]");
  ExpectRefused([](json& t) { t["not_replayable"] = std::string(5000, 'x'); }, "not_replayable");
}

TEST(TraceTest, RefusesRecordsThatContradictEachOther) {
  ExpectRefused([](json& t) { t["prompt_tokens"] = 8; }, "prompt_tokens");
  ExpectRefused([](json& t) { t["tokens"].push_back(3); }, "logit_rows");
  ExpectRefused([](json& t) { t["own_runs"] = 3; }, "own_runs");
  ExpectRefused([](json& t) { t["layer_fingerprints"].erase(1); }, "layer_fingerprints");
  ExpectRefused([](json& t) { t["layer_fingerprints"][1].erase(1); }, "layer_fingerprints");
  ExpectRefused([](json& t) { t["layer_fingerprints"][1][1] = 5; }, "layer_fingerprints[1][1]");
  ExpectRefused([](json& t) { t["runs"][0]["prefix"][0] = {0, 0}; }, "runs[0].prefix[0]");
  ExpectRefused([](json& t) { t["runs"][0]["prefix"][0] = {7, 0}; }, "runs[0].prefix[0]");
  ExpectRefused([](json& t) { t["runs"][1]["prefix"].push_back({0, 0}); }, "prefix[0]");
  ExpectRefused([](json& t) { t["runs"][1]["positions"] = 3; }, "runs[0].prefix[0]");
  ExpectRefused([](json& t) { t["runs"][0]["positions"] = 7; }, "runs[0]");
  ExpectRefused([](json& t) { t["steps"][2]["number"] = 7; }, "steps[2].number");
  ExpectRefused([](json& t) { t["steps"][0]["own"][0] = {0, 1, 1}; }, "steps[0].own[0]");
  ExpectRefused([](json& t) { t["steps"][0]["own"][0] = {1, 1, 3}; }, "steps[0].own[0]");
  ExpectRefused([](json& t) { t["steps"][0]["own"][0] = {2, 1, 4}; }, "steps[0].own[0]");
  ExpectRefused([](json& t) { t["steps"][0]["own"].clear(); }, "steps[0].own");
  ExpectRefused([](json& t) { t["steps"][1]["spans"][0] = {1, 3}; }, "steps[1].own[0]");
  ExpectRefused([](json& t) { t["steps"][1]["spans"][1] = {0, 50}; }, "steps[1].spans[1]");
  ExpectRefused([](json& t) { t["steps"][1]["spans"][1] = {90, 50}; }, "steps[1].spans[1]");
  ExpectRefused([](json& t) { t["steps"][1]["cuts"][0][0] = 1; }, "steps[1].cuts[0]");
  ExpectRefused([](json& t) { t["steps"][1]["logit_index"] = 2; }, "steps[1].logit_index");
  ExpectRefused([](json& t) { t["steps"][1]["logit_index"] = -1; }, "logit_index");
  ExpectRefused([](json& t) { t["steps"].erase(2); }, "steps");
  ExpectRefused([](json& t) { t["kernels"].erase(0); }, "kernels");
  // A page that is read before its writer has computed it.
  ExpectRefused(
      [](json& t) {
        t["steps"][0]["number"] = 9;
        std::rotate(t["steps"].begin(), t["steps"].begin() + 1, t["steps"].end());
      },
      "steps[0].own[0]");
}

TEST(TraceTest, RefusesExpertsThatContradictEachOther) {
  const auto expect = [](const std::function<void(json&)>& change, const std::string& field) {
    ExpectRefused(change, field, SmallMixture());
  };
  expect([](json& t) { t.erase("mixture"); }, "steps[0].routing");
  expect([](json& t) { t["mixture"]["experts"] = 0; }, "mixture.experts");
  expect([](json& t) { t["mixture"]["experts"] = 1025; }, "mixture.experts");
  expect([](json& t) { t["mixture"]["experts_per_token"] = 4; }, "mixture.experts_per_token");
  expect([](json& t) { t["mixture"]["layers"] = {2, 1}; }, "mixture.layers");
  expect([](json& t) { t["mixture"]["layers"].clear(); }, "mixture.layers");
  expect([](json& t) { t["mixture"]["layers"] = "all"; }, "mixture.layers");
  expect([](json& t) { t["mixture"]["x"] = 1; }, "mixture.x");
  expect([](json& t) { t["steps"][1].erase("routing"); }, "steps[1].routing: 0 layers of 2");
  expect([](json& t) { t["steps"][1]["routing"].erase(0); }, "steps[1].routing");
  expect([](json& t) { t["steps"][1]["routing"] = 3; }, "steps[1].routing");
  expect([](json& t) { t["steps"][1]["routing"][1].erase(2); }, "steps[1].routing[1]");
  const auto layer = [&](int part, const json& value) {
    expect([&](json& t) { t["steps"][1]["routing"][1][part] = value; }, "steps[1].routing[1]");
  };
  layer(0, {2});
  layer(0, {2, -1, 0});
  layer(0, {3, -1});
  layer(0, {2, -2});
  layer(0, {2, 2});  // twice the same expert
  layer(0, {2, 0});  // got what it wanted
  layer(0, {2, "-1"});
  layer(1, json::array());  // lost, and wanted nothing
  layer(1, {1});
  layer(1, {2, 0});
  layer(1, {1, 3});
  layer(1, {1, 0, 1, 1});
  layer(2, {0, 1});              // expert 2 is missing
  layer(2, {0, 1, 2, 0});        // fewer tokens than own slots
  layer(2, {0, 2, 2, 2});        // more tokens than slots
  layer(2, {2, 1, 0, 1});        // out of order
  layer(2, {0, 3, 2, 1});        // more tokens than rows
  layer(2, {0, 1, 1, 1, 2, 1});  // expert 1 is nobody's
  expect([](json& t) { t["kernels"].erase(4); },
         "kernels: say nothing of the 2 tokens of expert 1");
  expect([](json& t) { t["kernels"][3]["experts"] = 1; }, "kernels[3].experts");
  expect([](json& t) { t["kernels"][3]["logits"] = true; }, "kernels[3].experts");
  ExpectRefused([](json& t) { t["kernels"][1]["experts"] = true; }, "kernels[1].experts");
}

TEST(TraceTest, RefusesMalformedAndOversizedText) {
  const std::string text = ToJson(Small());
  for (size_t length = 0; length < text.size(); length += 7) {
    EXPECT_FALSE(Parse(text.substr(0, length), "t.json").ok()) << length;
  }
  EXPECT_FALSE(
      Parse(absl::StrReplaceAll(text, {{"\"version\":1", "\"version\":1,\"version\":1"}}), "t.json")
          .ok());
  EXPECT_FALSE(Parse(absl::StrCat(std::string(100, '['), std::string(100, ']')), "t.json").ok());
  EXPECT_FALSE(Parse("[]", "t.json").ok());
  const auto large = Parse(std::string(kMaxTraceBytes + 1, ' '), "t.json");
  EXPECT_THAT(std::string(large.status().message()), HasSubstr("at most"));
  EXPECT_TRUE(absl::IsNotFound(ReadTraceFile("no/such/file.json").status()));
}

// No single changed byte makes the parser do anything but accept or refuse.
TEST(TraceTest, SurvivesEveryChangedByte) {
  const std::string text = ToJson(SmallMixture());
  int accepted = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    for (char c : {'9', '-', '"', '\0'}) {
      std::string changed = text;
      changed[i] = c;
      const auto parsed = Parse(changed, "t.json");
      if (!parsed.ok()) continue;
      ++accepted;
      EXPECT_TRUE(CheckConsistency(*parsed).ok());
    }
  }
  EXPECT_GT(accepted, 0);  // a changed token id is still a trace
}

}  // namespace
}  // namespace verbatim::trace
