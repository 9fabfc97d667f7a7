// A server in this process with an engine on a small real model, for tests of receipts and of the
// response cache.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/engine_test_support.h"
#include "grpcpp/client_context.h"
#include "model/chat_template.h"
#include "receipt/receipt_message.h"
#include "receipt/signature.h"
#include "server/generation_service.h"
#include "server/grpc_server.h"
#include "server/write_thread.h"

namespace verbatim::server {

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

inline v1::GenerateRequest GreedyRequest(uint32_t seed, int prompt, int64_t max_tokens) {
  v1::GenerateRequest request;
  for (int32_t id : engine::RandomPrompt(seed, prompt)) request.mutable_token_ids()->add_ids(id);
  request.set_determinism(v1::DETERMINISM_PORTABLE);
  request.set_return_receipt(true);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

inline v1::GenerateRequest SampledRequest(uint32_t seed, int prompt, int64_t max_tokens) {
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

}  // namespace verbatim::server
