// Tests of receipts and their verification over in-process channels, on a small real model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/logits_hash.h"
#include "receipt/receipt_test_support.h"
#include "server/receipt_test_node.h"

namespace verbatim::server {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// Rows and chain as a forger would leave them: nothing contradicts anything.
receipt::Receipt Consistent(receipt::Receipt receipt) {
  engine::LogitsHash chain;
  for (const auto& row : receipt.row_fingerprints) chain.Add(row);
  receipt.logits_sha256 = chain.Hex();
  return receipt;
}

TEST(ReceiptServiceTest, ReceiptsOfOneServerVerifyOnAnother) {
  Node first;
  NodeOptions other;
  other.config.scheduler.page_tokens = 32;
  other.config.scheduler.max_num_batched_tokens = 29;
  other.threads = 1;
  other.isa = kernels::cpu::Isa::kScalar;
  Node second(std::move(other));
  v1::GenerateRequest request = SampledRequest(1, 40, 30);
  request.mutable_sampling()->set_n(3);
  const Answer answer = first.Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  ASSERT_EQ(answer.samples.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    const receipt::Receipt receipt = answer.Receipt(i);
    EXPECT_EQ(receipt.sample_index, static_cast<int64_t>(i));
    EXPECT_EQ(receipt.sampling.n, 3);
    EXPECT_EQ(receipt.seed, 99u);
    EXPECT_EQ(receipt.policy, "portable");
    EXPECT_EQ(receipt.numerics_id, answer.accepted.numerics_id());
    EXPECT_EQ(receipt.logits_sha256, answer.samples[i].finished.logits_sha256());
    EXPECT_THAT(answer.samples[i].tokens, ::testing::ElementsAreArray(receipt.output_token_ids));
    EXPECT_EQ(receipt.server_version, "test");
    EXPECT_EQ(receipt.model, "tiny");
    EXPECT_EQ(receipt.sampling.logit_bias,
              (std::vector<std::pair<int64_t, float>>{{12, -3.0f}, {30, 1.5f}}));
    for (Node* node : {&first, &second}) {
      const v1::VerifyReceiptResponse by_message = node->Verify(receipt);
      EXPECT_TRUE(by_message.verified()) << by_message.DebugString();
      EXPECT_EQ(by_message.output_tokens_checked(),
                static_cast<int64_t>(receipt.output_token_ids.size()));
      EXPECT_TRUE(node->VerifyJson(receipt::ToCanonicalJson(receipt)).verified());
    }
  }
}

TEST(ReceiptServiceTest, DefaultsAreRecordedAsResolved) {
  Node node;
  v1::GenerateRequest request = GreedyRequest(2, 360, 1);
  request.mutable_sampling()->Clear();
  request.set_determinism(v1::DETERMINISM_PINNED);
  const Answer answer = node.Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  const receipt::Receipt receipt = answer.Receipt();
  EXPECT_EQ(receipt.sampling.max_tokens, 24);  // what the context of 384 leaves
  EXPECT_EQ(receipt.sampling.temperature, 1.0f);
  EXPECT_EQ(receipt.seed, answer.accepted.seed());
  EXPECT_EQ(receipt.policy, "pinned");
  EXPECT_TRUE(node.Verify(receipt).verified());
}

TEST(ReceiptServiceTest, WithoutBeingAskedThereIsNone) {
  Node node;
  v1::GenerateRequest request = GreedyRequest(2, 20, 4);
  request.set_return_receipt(false);
  EXPECT_FALSE(node.Generate(request).samples.at(0).finished.has_receipt());
}

TEST(ReceiptServiceTest, AForgedReceiptIsRefusedWithWhatDiffers) {
  Node node;
  const receipt::Receipt receipt = node.Generate(SampledRequest(3, 30, 40)).Receipt();
  ASSERT_TRUE(node.Verify(receipt).verified());
  struct Forgery {
    std::string field;
    std::optional<int64_t> token;
    std::function<void(receipt::Receipt&)> change;
    bool before_any_work = false;
  };
  const std::vector<Forgery> forgeries = {
      {"weights_sha256", {}, [](auto& r) { r.weights_sha256[7] ^= 1; }, true},
      {"tokenizer_sha256", {}, [](auto& r) { r.tokenizer_sha256[7] ^= 1; }, true},
      {"numerics_id", {}, [](auto& r) { r.numerics_id += "x"; }, true},
      {"contract_version", {}, [](auto& r) { r.contract_version = 2; }, true},
      {"output_token_ids", 11, [](auto& r) { r.output_token_ids[11] ^= 1; }},
      {"row_fingerprints", 7, [](auto& r) { r.row_fingerprints[7].a ^= 1; }},
      {"row_fingerprints", 0, [](auto& r) { r.prompt_token_ids[29] ^= 1; }},
      {"finish_reason", 39, [](auto& r) { r.finish_reason = "stop"; }},
      {"stop_reason", 39, [](auto& r) { r.stop_reason = "zzzz"; }},
      {"finish_reason", 38, [](auto& r) {
         r.output_token_ids.pop_back();
         r.row_fingerprints.pop_back();
       }}};
  for (const Forgery& forgery : forgeries) {
    const int64_t before = node.Info().steps().tokens();
    receipt::Receipt forged = receipt;
    forgery.change(forged);
    const v1::VerifyReceiptResponse response = node.Verify(Consistent(forged));
    EXPECT_FALSE(response.verified());
    EXPECT_EQ(response.mismatch_field(), forgery.field);
    EXPECT_EQ(response.has_mismatch_token_index(), forgery.token.has_value());
    EXPECT_EQ(response.mismatch_token_index(), forgery.token.value_or(0));
    EXPECT_NE(response.expected(), response.actual());
    EXPECT_EQ(response.checks().rbegin()->outcome(), v1::CHECK_OUTCOME_FAILED);
    EXPECT_EQ(node.Info().steps().tokens() == before, forgery.before_any_work) << forgery.field;
  }
  // Whose arithmetic differs, the other policy's receipt is another.
  receipt::Receipt forged = receipt;
  forged.policy = "pinned";
  const bool same_arithmetic =
      node.context.engine->SupportOf(kernels::Policy::kPinned).numerics_id == receipt.numerics_id;
  EXPECT_EQ(node.Verify(forged).mismatch_field(), same_arithmetic ? "" : "numerics_id");
  forged = receipt;
  forged.logits_sha256[0] ^= 1;
  EXPECT_EQ(node.Verify(forged).mismatch_field(), "logits_sha256");
  forged = receipt;
  forged.seed ^= 1;
  EXPECT_EQ(node.Verify(forged).mismatch_field(), "output_token_ids");
  // Careless changes are named although this answer does not show them.
  std::string json = receipt::ToCanonicalJson(receipt);
  json.replace(json.find("\"server_version\":\"test\""), 23, "\"server_version\":\"text\"");
  EXPECT_EQ(node.VerifyJson(json).mismatch_field(), "server_version");
}

TEST(ReceiptServiceTest, ASignatureCoversWhatARecomputationCannotSee) {
  const receipt::TemporaryDirectory directory;
  const auto key = [&](uint8_t byte) {
    return *receipt::SigningKey::Load(directory.Write(absl::StrCat(static_cast<int>(byte)),
                                                      receipt::Ed25519Pair(byte).private_pem));
  };
  NodeOptions options;
  options.key = key(1);
  Node node(std::move(options));
  EXPECT_EQ(node.Info().receipt_key_id(), key(1).public_key().id());
  const receipt::Receipt receipt = node.Generate(GreedyRequest(4, 20, 8)).Receipt();
  EXPECT_TRUE(key(1).public_key().Check(receipt).ok());
  const v1::VerifyReceiptResponse verified = node.Verify(receipt);
  EXPECT_TRUE(verified.verified());
  EXPECT_EQ(verified.checks(2).name(), "signature");
  EXPECT_EQ(verified.checks(2).outcome(), v1::CHECK_OUTCOME_PASSED);

  receipt::Receipt renamed = receipt;
  renamed.model = "another";
  EXPECT_EQ(node.Verify(renamed).mismatch_field(), "signature");
  // Without its signature, or signed by a key the server does not have, only the rest is checked.
  renamed.signature = {};
  const v1::VerifyReceiptResponse unsigned_response = node.Verify(renamed);
  EXPECT_TRUE(unsigned_response.verified());
  EXPECT_EQ(unsigned_response.checks(2).outcome(), v1::CHECK_OUTCOME_SKIPPED);
  ASSERT_TRUE(key(2).Sign(&renamed).ok());
  EXPECT_EQ(node.Verify(renamed).checks(2).outcome(), v1::CHECK_OUTCOME_SKIPPED);
}

TEST(ReceiptServiceTest, WhatCannotBeDoneIsRefusedWithTheReason) {
  Node node;
  v1::GenerateRequest request = GreedyRequest(5, 10, 4);
  request.set_determinism(v1::DETERMINISM_THROUGHPUT);
  Answer answer = node.Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(answer.status.error_message(), StartsWith("return_receipt: determinism is throu"));

  const receipt::Receipt receipt = node.Generate(GreedyRequest(5, 10, 4)).Receipt();
  const std::string json = receipt::ToCanonicalJson(receipt);
  v1::VerifyReceiptResponse response;
  EXPECT_THAT(node.Verify({}, &response).error_message(), StartsWith("input: one of"));
  EXPECT_EQ(node.ErrorOf("{").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(node.ErrorOf(json.substr(0, 99)).error_message(), HasSubstr("offset 99"));
  receipt::Receipt hot = receipt;
  hot.sampling.temperature = 1e9f;
  grpc::Status status = node.ErrorOf(receipt::ToCanonicalJson(hot));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), StartsWith("receipt: sampling.temperature: 1e+09"));
  receipt::Receipt foreign = receipt;
  foreign.output_token_ids[2] = 1 << 30;
  EXPECT_THAT(node.ErrorOf(receipt::ToCanonicalJson(foreign)).error_message(),
              StartsWith("receipt: output_token_ids[2]: token id 1073741824"));
  receipt::Receipt endless = receipt;
  endless.sampling.max_tokens = 1000;
  endless.output_token_ids.resize(500, 1);
  endless.row_fingerprints.resize(500);
  status = node.ErrorOf(receipt::ToCanonicalJson(Consistent(endless)));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("510 tokens exceed max_model_len 384"));

  status = node.ErrorOf(std::string(600'000, ' ') + json);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("one that fits max_model_len 384 has at most"));
  const grpc::Status padded = node.ErrorOf(std::string(500'000, ' ') + json);
  EXPECT_TRUE(padded.ok()) << padded.error_message();

  node.context.receipts = nullptr;
  node.context.limits.receipts = false;
  answer = node.Generate(GreedyRequest(5, 10, 4));
  EXPECT_THAT(answer.status.error_message(), HasSubstr("--no-receipts"));
  status = node.ErrorOf(json);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("--no-receipts"));
  node.context.draining = true;
  EXPECT_EQ(node.ErrorOf(json).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(ReceiptServiceTest, AFullQueueRefusesVerificationsToo) {
  Node maker;
  NodeOptions options;
  options.config.scheduler.max_queued_tokens = 30;
  Node node(std::move(options));
  const receipt::Receipt receipt = maker.Generate(GreedyRequest(6, 20, 20)).Receipt();
  const grpc::Status status = node.ErrorOf(receipt::ToCanonicalJson(receipt));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), StartsWith("receipt: the queue is full"));
}

TEST(ReceiptServiceTest, VerdictsDoNotDependOnTheLoad) {
  NodeOptions options;
  options.config.scheduler.num_pages = 60;
  Node node(std::move(options));
  const receipt::Receipt receipt = node.Generate(SampledRequest(7, 60, 80)).Receipt();
  receipt::Receipt forged = receipt;
  forged.output_token_ids[50] ^= 1;
  std::atomic<bool> stop = false;
  std::vector<std::thread> load;
  for (uint32_t i = 0; i < 4; ++i) {
    load.emplace_back([&, i] {
      for (uint32_t j = 0; !stop; ++j) {
        v1::GenerateRequest request = SampledRequest(100 * i + j, 20 + (j * 37) % 150, 40);
        if (i % 2 == 0) {
          request.set_determinism(v1::DETERMINISM_THROUGHPUT);
          request.set_return_receipt(false);
        }
        EXPECT_TRUE(node.Generate(request).status.ok());
      }
    });
  }
  for (int i = 0; i < 12; ++i) {
    EXPECT_TRUE(node.Verify(receipt).verified());
    const v1::VerifyReceiptResponse response = node.Verify(forged);
    EXPECT_EQ(response.mismatch_field(), "output_token_ids");
    EXPECT_EQ(response.mismatch_token_index(), 50);
  }
  stop = true;
  for (std::thread& thread : load) thread.join();
}

}  // namespace
}  // namespace verbatim::server
