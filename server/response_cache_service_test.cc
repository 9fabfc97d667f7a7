// Tests of the response cache over in-process channels, on a small real model.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/receipt_test_node.h"

namespace verbatim::server {
namespace {

// All that the caller sees of the computation.
std::string Content(const Answer& answer) {
  std::string content = absl::StrCat(answer.accepted.seed(), "\n");
  for (const auto& message : answer.prompt_logprobs) content += message.SerializeAsString();
  for (const Answer::Sample& sample : answer.samples) {
    absl::StrAppend(&content, sample.text, "\n", sample.tokens.size(), "\n");
    for (int32_t token : sample.tokens) absl::StrAppend(&content, token, ",");
    for (const std::string& logprob : sample.logprobs) absl::StrAppend(&content, logprob, ";");
    v1::Finished finished = sample.finished;
    finished.clear_receipt();
    content += finished.SerializeAsString();
    if (sample.finished.has_receipt()) {
      content += receipt::ToCanonicalJson(*receipt::FromMessage(sample.finished.receipt()));
    }
  }
  return content;
}

TEST(ResponseCacheServiceTest, AHitOfTheResponseCacheIsTheSameAnswer) {
  NodeOptions options;
  options.response_cache_bytes = 1 << 20;
  Node node(std::move(options));
  fragility::Calibration& calibration = node.context.fragility_calibration.emplace();
  calibration.drift.Add(0);
  calibration.fragile_margin = 1;
  v1::GenerateRequest request = SampledRequest(8, 40, 30);
  request.set_return_fragility(true);
  request.mutable_sampling()->set_n(2);
  request.mutable_sampling()->set_logprobs(3);
  request.mutable_sampling()->set_prompt_logprobs(2);
  const Answer first = node.Generate(request);
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_FALSE(first.usage.response_cache_hit());
  EXPECT_GT(first.samples[0].finished.fragility().fragile_tokens(), 1);
  const int64_t computed = node.Info().steps().tokens();
  request.set_request_id("another");
  const Answer second = node.Generate(request);
  EXPECT_TRUE(second.usage.response_cache_hit());
  EXPECT_EQ(second.accepted.request_id(), "another");
  EXPECT_EQ(Content(second), Content(first));
  EXPECT_EQ(second.usage.output_tokens(), first.usage.output_tokens());
  EXPECT_EQ(node.Info().steps().tokens(), computed);
  EXPECT_TRUE(node.Verify(second.Receipt(1)).verified());
  EXPECT_GT(node.Info().steps().tokens(), computed) << "a verification computes";

  // Without a receipt the same answer serves, but carries none.
  request.set_return_receipt(false);
  const Answer third = node.Generate(request);
  EXPECT_TRUE(third.usage.response_cache_hit());
  EXPECT_FALSE(third.samples[0].finished.has_receipt());
  EXPECT_EQ(third.samples[1].text, first.samples[1].text);
  EXPECT_EQ(node.Info().response_cache().hits(), 2);
  EXPECT_EQ(node.Info().response_cache().misses(), 1);
  EXPECT_EQ(node.Info().response_cache().entries(), 1);
}

TEST(ResponseCacheServiceTest, WhatDiffersIsAnotherEntry) {
  NodeOptions options;
  options.response_cache_bytes = 1 << 20;
  Node node(std::move(options));
  const v1::GenerateRequest request = SampledRequest(9, 20, 6);
  const std::vector<std::function<void(v1::GenerateRequest&)>> changes = {
      [](auto& r) { r.set_cache_salt("mine"); },
      [](auto& r) { r.set_determinism(v1::DETERMINISM_PINNED); },
      [](auto& r) { r.mutable_token_ids()->set_ids(3, r.token_ids().ids(3) ^ 1); },
      [](auto& r) { r.mutable_sampling()->set_temperature(0.9f); },
      [](auto& r) { r.mutable_sampling()->set_top_k(2); },
      [](auto& r) { r.mutable_sampling()->set_top_p(0.5f); },
      [](auto& r) { r.mutable_sampling()->set_min_p(0.5f); },
      [](auto& r) { r.mutable_sampling()->set_presence_penalty(0.5f); },
      [](auto& r) { r.mutable_sampling()->set_frequency_penalty(0.5f); },
      [](auto& r) { r.mutable_sampling()->set_repetition_penalty(1.5f); },
      [](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[31] = 1.5f; },
      [](auto& r) { r.mutable_sampling()->set_seed(100); },
      [](auto& r) { r.mutable_sampling()->set_n(2); },
      [](auto& r) { r.mutable_sampling()->add_stop("y"); },
      [](auto& r) { r.mutable_sampling()->add_stop_token_ids(6); },
      [](auto& r) { r.mutable_sampling()->set_ignore_eos(false); },
      [](auto& r) { r.mutable_sampling()->set_max_tokens(7); },
      [](auto& r) { r.mutable_sampling()->set_min_tokens(4); },
      [](auto& r) { r.mutable_sampling()->set_logprobs(0); },
      [](auto& r) { r.mutable_sampling()->set_prompt_logprobs(0); },
      [](auto& r) { r.mutable_sampling()->set_skip_special_tokens(false); },
      [](auto& r) { r.mutable_sampling()->set_include_stop_str_in_output(true); },
  };
  ASSERT_TRUE(node.Generate(request).status.ok());
  for (size_t i = 0; i < changes.size(); ++i) {
    v1::GenerateRequest changed = request;
    changes[i](changed);
    const Answer first = node.Generate(changed);
    ASSERT_TRUE(first.status.ok()) << first.status.error_message();
    EXPECT_FALSE(first.usage.response_cache_hit()) << i;
    EXPECT_TRUE(node.Generate(changed).usage.response_cache_hit()) << i;
  }
  EXPECT_TRUE(node.Generate(request).usage.response_cache_hit());
}

TEST(ResponseCacheServiceTest, OnlyPureFunctionsAreKept) {
  NodeOptions options;
  options.response_cache_bytes = 1 << 20;
  Node node(std::move(options));
  const auto hits_when_repeated = [&](const std::function<void(v1::GenerateRequest&)>& change) {
    v1::GenerateRequest request = SampledRequest(10, 20, 4);
    change(request);
    EXPECT_TRUE(node.Generate(request).status.ok());
    return node.Generate(request).usage.response_cache_hit();
  };
  EXPECT_TRUE(hits_when_repeated([](auto&) {}));
  EXPECT_FALSE(hits_when_repeated([](auto& r) { r.mutable_sampling()->clear_seed(); }));
  EXPECT_TRUE(hits_when_repeated([](auto& r) {
    r.mutable_sampling()->clear_seed();
    r.mutable_sampling()->set_temperature(0);
  }));
  EXPECT_FALSE(hits_when_repeated([](auto& r) { r.set_disable_prefix_cache(true); }));
  EXPECT_FALSE(hits_when_repeated([](auto& r) {
    r.set_determinism(v1::DETERMINISM_THROUGHPUT);
    r.set_return_receipt(false);
  }));
}

}  // namespace
}  // namespace verbatim::server
