// Tests that every field of a request is checked and named.
#include "engine/validation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

namespace verbatim::engine {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

RequestLimits Limits() {
  return {.vocab_size = 100,
          .max_model_len = 64,
          .page_tokens = 16,
          .num_pages = 3,
          .max_logprobs = 5,
          .max_n = 8};
}

GenerationRequest Good() {
  GenerationRequest request;
  request.prompt = {1, 2, 3};
  request.sampling.max_tokens = 4;
  return request;
}

TEST(ValidationTest, AGoodRequestPasses) { EXPECT_TRUE(ValidateRequest(Good(), Limits()).ok()); }

struct Case {
  std::string field;
  std::function<void(GenerationRequest&)> spoil;
};

TEST(ValidationTest, EveryBadFieldIsNamed) {
  std::vector<Case> cases;
  const auto floats = [&](const std::string& field, float SamplingOptions::*member,
                          std::vector<float> values) {
    values.insert(values.end(), {kNan, kInf, -kInf, 1e30f});
    for (float value : values) {
      cases.push_back(
          {field, [member, value](GenerationRequest& r) { r.sampling.*member = value; }});
    }
  };
  floats("sampling.temperature", &SamplingOptions::temperature, {-1, -0.1f, 101, 1e-30f});
  floats("sampling.top_p", &SamplingOptions::top_p, {-1, 0, 1.5f});
  floats("sampling.min_p", &SamplingOptions::min_p, {-1, 1.01f});
  floats("sampling.presence_penalty", &SamplingOptions::presence_penalty, {-2.1f, 2.1f});
  floats("sampling.frequency_penalty", &SamplingOptions::frequency_penalty, {-2.1f, 2.1f});
  floats("sampling.repetition_penalty", &SamplingOptions::repetition_penalty, {-1, 0, 101});
  const auto add = [&](const std::string& field, std::function<void(GenerationRequest&)> spoil) {
    cases.push_back({field, std::move(spoil)});
  };
  add("sampling.top_k", [](auto& r) { r.sampling.top_k = -2; });
  for (float bias : {kNan, kInf, 101.0f, -101.0f}) {
    add("sampling.logit_bias", [bias](auto& r) { r.sampling.logit_bias = {{3, bias}}; });
  }
  for (int32_t id : {-1, 100, std::numeric_limits<int32_t>::max()}) {
    add("sampling.logit_bias", [id](auto& r) { r.sampling.logit_bias = {{id, 1.0f}}; });
    add("sampling.stop_token_ids[1]", [id](auto& r) { r.sampling.stop_token_ids = {1, id}; });
    add("prompt[2]", [id](auto& r) { r.prompt[2] = id; });
  }
  add("sampling.logit_bias", [](auto& r) { r.sampling.logit_bias = {{3, 1.0f}, {3, 2.0f}}; });
  add("sampling.stop[1]", [](auto& r) { r.sampling.stop = {"a", ""}; });
  add("sampling.stop[0]", [](auto& r) { r.sampling.stop = {std::string(5000, 'x')}; });
  add("sampling.stop", [](auto& r) { r.sampling.stop.assign(65, "x"); });
  add("sampling.stop_token_ids", [](auto& r) { r.sampling.stop_token_ids.assign(65, 1); });
  for (int32_t n : {-1, 0, 9, 1000000}) add("sampling.n", [n](auto& r) { r.sampling.n = n; });
  for (int32_t count : {-2, 6, 1000000}) {
    add("sampling.logprobs", [count](auto& r) { r.sampling.logprobs = count; });
    add("sampling.prompt_logprobs", [count](auto& r) { r.sampling.prompt_logprobs = count; });
  }
  for (int64_t tokens :
       {int64_t{-1}, int64_t{0}, int64_t{62}, std::numeric_limits<int64_t>::max()}) {
    add("sampling.max_tokens", [tokens](auto& r) { r.sampling.max_tokens = tokens; });
  }
  // 3 pages of 16 tokens hold less than the context.
  add("sampling.max_tokens", [](auto& r) { r.sampling.max_tokens = 46; });
  for (int64_t tokens : {int64_t{-1}, int64_t{5}, std::numeric_limits<int64_t>::max()}) {
    add("sampling.min_tokens", [tokens](auto& r) { r.sampling.min_tokens = tokens; });
  }
  add("prompt", [](auto& r) { r.prompt.clear(); });
  add("prompt", [](auto& r) { r.prompt.assign(64, 1); });
  add("prompt", [](auto& r) { r.prompt.assign(100000, 1); });
  for (const Case& c : cases) {
    GenerationRequest request = Good();
    c.spoil(request);
    const absl::Status status = ValidateRequest(request, Limits());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.field;
    EXPECT_EQ(std::string(status.message()).rfind(c.field, 0), 0u) << c.field << " | " << status;
  }
}

TEST(ValidationTest, EdgesOfRangesPass) {
  GenerationRequest request = Good();
  request.sampling = {.temperature = 0,
                      .top_k = -1,
                      .top_p = 1,
                      .min_p = 1,
                      .presence_penalty = -2,
                      .frequency_penalty = 2,
                      .repetition_penalty = 100,
                      .logit_bias = {{0, -100.0f}, {99, 100.0f}},
                      .n = 8,
                      .max_tokens = 45,
                      .min_tokens = 45,
                      .logprobs = 5,
                      .prompt_logprobs = 0};
  EXPECT_TRUE(ValidateRequest(request, Limits()).ok()) << ValidateRequest(request, Limits());
}

}  // namespace
}  // namespace verbatim::engine
