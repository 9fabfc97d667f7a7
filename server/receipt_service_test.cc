// Tests of receipts, verification and the response cache over in-process channels, on a small real
// model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/engine_test_support.h"
#include "engine/logits_hash.h"
#include "grpcpp/client_context.h"
#include "model/chat_template.h"
#include "receipt/receipt_message.h"
#include "receipt/receipt_test_support.h"
#include "server/generation_service.h"
#include "server/grpc_server.h"
#include "server/write_thread.h"

namespace verbatim::server {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Answer {
  v1::Accepted accepted;
  std::vector<v1::GenerateResponse> prompt_logprobs;
  struct Sample {
    std::string text;
    std::vector<int32_t> tokens;
    std::vector<std::string> logprobs;  // serialised
    v1::Finished finished;
  };
  std::vector<Sample> samples;
  v1::Usage usage;
  grpc::Status status;

  receipt::Receipt Receipt(size_t index = 0) const {
    auto receipt = receipt::FromMessage(samples.at(index).finished.receipt());
    EXPECT_TRUE(receipt.ok()) << receipt.status();
    return receipt.ok() ? *receipt : receipt::Receipt();
  }
};

struct NodeOptions {
  engine::EngineConfig config = engine::TinyConfig();
  int threads = 2;
  std::optional<kernels::cpu::Isa> isa;
  std::optional<receipt::SigningKey> key;
  int64_t response_cache_bytes = 0;
};

// One server with an engine of its own.
class Node {
 public:
  explicit Node(NodeOptions options = {}) {
    const engine::TestModel& model = engine::TinyModel();
    engine_ = engine::StartEngine(options.config, options.threads, options.isa);
    issuer_ = std::make_unique<ReceiptIssuer>(
        ReceiptIdentity{"test", "tiny", model.checkpoint->WeightsFingerprint(),
                        std::string(model.tokenizer->fingerprint())},
        std::move(options.key));
    context.engine = engine_.get();
    context.tokenizer = model.tokenizer.get();
    context.chat_template = &chat_template_;
    context.text_workers = &workers_;
    context.write_thread = &write_thread_;
    context.receipts = issuer_.get();
    if (options.response_cache_bytes > 0) {
      cache_ = std::make_unique<ResponseCache>(options.response_cache_bytes);
      context.response_cache = cache_.get();
    }
    context.limits.vocab_size = model.checkpoint->config().vocab_size;
    context.limits.max_model_len = options.config.scheduler.max_model_len;
    context.start_time = absl::Now();
    service_ = std::make_unique<GenerationService>(&context);
    server_ = *GrpcServer::Start({.host = ""}, service_.get());
    stub_ = v1::VerbatimService::NewStub(server_->InProcessChannel());
  }

  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext call;
    auto reader = stub_->Generate(&call, request);
    Answer answer;
    v1::GenerateResponse message;
    const auto at = [&](int index) -> Answer::Sample& {
      if (answer.samples.size() <= static_cast<size_t>(index)) answer.samples.resize(index + 1);
      return answer.samples[index];
    };
    while (reader->Read(&message)) {
      if (message.has_accepted()) answer.accepted = message.accepted();
      if (message.has_prompt_logprobs()) answer.prompt_logprobs.push_back(message);
      if (message.has_delta()) {
        Answer::Sample& sample = at(message.delta().index());
        sample.text += message.delta().text();
        for (int32_t token : message.delta().token_ids()) sample.tokens.push_back(token);
        for (const auto& position : message.delta().logprobs()) {
          sample.logprobs.push_back(position.SerializeAsString());
        }
      }
      if (message.has_finished()) at(message.finished().index()).finished = message.finished();
      if (message.has_usage()) answer.usage = message.usage();
    }
    answer.status = reader->Finish();
    return answer;
  }

  grpc::Status Verify(const v1::VerifyReceiptRequest& request,
                      v1::VerifyReceiptResponse* response) {
    grpc::ClientContext call;
    return stub_->VerifyReceipt(&call, request, response);
  }
  v1::VerifyReceiptResponse Verify(const receipt::Receipt& receipt) {
    v1::VerifyReceiptRequest request;
    *request.mutable_receipt() = receipt::ToMessage(receipt);
    v1::VerifyReceiptResponse response;
    const grpc::Status status = Verify(request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  v1::VerifyReceiptResponse VerifyJson(const std::string& json) {
    v1::VerifyReceiptRequest request;
    request.set_canonical_json(json);
    v1::VerifyReceiptResponse response;
    const grpc::Status status = Verify(request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  grpc::Status ErrorOf(const std::string& json) {
    v1::VerifyReceiptRequest request;
    request.set_canonical_json(json);
    v1::VerifyReceiptResponse response;
    return Verify(request, &response);
  }
  v1::GetServerInfoResponse Info() {
    grpc::ClientContext call;
    v1::GetServerInfoResponse info;
    EXPECT_TRUE(stub_->GetServerInfo(&call, {}, &info).ok());
    return info;
  }

  ServiceContext context;

 private:
  model::ChatTemplate chat_template_;
  TextWorkers workers_{1, 64};
  WriteThread write_thread_;
  std::unique_ptr<ReceiptIssuer> issuer_;
  std::unique_ptr<ResponseCache> cache_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<GenerationService> service_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::VerbatimService::Stub> stub_;
};

v1::GenerateRequest GreedyRequest(uint32_t seed, int prompt, int64_t max_tokens) {
  v1::GenerateRequest request;
  for (int32_t id : engine::RandomPrompt(seed, prompt)) request.mutable_token_ids()->add_ids(id);
  request.set_determinism(v1::DETERMINISM_PORTABLE);
  request.set_return_receipt(true);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

v1::GenerateRequest SampledRequest(uint32_t seed, int prompt, int64_t max_tokens) {
  v1::GenerateRequest request = GreedyRequest(seed, prompt, max_tokens);
  v1::SamplingParams& s = *request.mutable_sampling();
  s.set_temperature(0.8f);
  s.set_top_p(0.9f);
  s.set_top_k(50);
  s.set_repetition_penalty(1.1f);
  s.set_frequency_penalty(0.2f);
  s.set_seed(99);
  (*s.mutable_logit_bias())[30] = 1.5f;
  (*s.mutable_logit_bias())[12] = -3.0f;
  s.add_stop("zzzz");
  s.add_stop_token_ids(5);
  s.set_min_tokens(3);
  return request;
}

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

TEST(ReceiptServiceTest, AHitOfTheResponseCacheIsTheSameAnswer) {
  NodeOptions options;
  options.response_cache_bytes = 1 << 20;
  Node node(std::move(options));
  v1::GenerateRequest request = SampledRequest(8, 40, 30);
  request.mutable_sampling()->set_n(2);
  request.mutable_sampling()->set_logprobs(3);
  request.mutable_sampling()->set_prompt_logprobs(2);
  const Answer first = node.Generate(request);
  ASSERT_TRUE(first.status.ok()) << first.status.error_message();
  EXPECT_FALSE(first.usage.response_cache_hit());
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

TEST(ReceiptServiceTest, WhatDiffersIsAnotherEntry) {
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

TEST(ReceiptServiceTest, OnlyPureFunctionsAreKept) {
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
