// Tests of the service over in-process channels, with an engine that the test plays.
#include "server/generation_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "grpcpp/client_context.h"
#include "server/grpc_server.h"
#include "server/service_test_support.h"
#include "server/write_thread.h"

namespace verbatim::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Lt;
using ::testing::StartsWith;

class GenerationServiceTest : public ::testing::Test {
 protected:
  GenerationServiceTest() : workers_(std::make_unique<TextWorkers>(1, 16)) {
    context_.engine = &engine_;
    context_.tokenizer = &tokenizer_;
    context_.chat_template = &chat_template_;
    context_.text_workers = workers_.get();
    context_.write_thread = &write_thread_;
    context_.limits.served_model_name = "bytes";
    context_.limits.vocab_size = tokenizer_.vocab_size();
    context_.limits.max_model_len = 1000;
    context_.limits.default_policy = kernels::Policy::kPortable;
    context_.model_info.set_served_model_name("bytes");
    context_.server_info.set_version("test");
    context_.start_time = absl::Now();
    context_.request_id_prefix = "made-";
    service_ = std::make_unique<GenerationService>(&context_);
    server_ =
        *GrpcServer::Start({.host = "", .max_receive_message_bytes = 1 << 20}, service_.get());
    stub_ = v1::VerbatimService::NewStub(server_->InProcessChannel());
  }

  struct Answer {
    std::vector<v1::GenerateResponse> messages;
    grpc::Status status;

    std::string TextOf(int index) const {
      std::string text;
      for (const auto& message : messages) {
        if (message.has_delta() && message.delta().index() == index) text += message.delta().text();
      }
      return text;
    }
  };

  static Answer Drain(grpc::ClientReader<v1::GenerateResponse>& reader) {
    Answer answer;
    v1::GenerateResponse message;
    while (reader.Read(&message)) answer.messages.push_back(message);
    answer.status = reader.Finish();
    return answer;
  }

  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext call;
    auto reader = stub_->Generate(&call, request);
    return Drain(*reader);
  }

  static v1::GenerateRequest TextRequest(const std::string& text = "ab") {
    v1::GenerateRequest request;
    request.set_text(text);
    return request;
  }

  ByteTokenizer tokenizer_;
  model::ChatTemplate chat_template_;
  FakeEngine engine_;
  ServiceContext context_;
  std::unique_ptr<TextWorkers> workers_;
  WriteThread write_thread_;
  std::unique_ptr<GenerationService> service_;
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<v1::VerbatimService::Stub> stub_;
};

TEST_F(GenerationServiceTest, StreamsAcceptedDeltasFinishedUsage) {
  v1::GenerateRequest request = TextRequest();
  request.set_request_id("mine");
  request.set_return_prompt_token_ids(true);
  grpc::ClientContext call;
  auto reader = stub_->Generate(&call, request);
  FakeEngine::Submitted submitted = engine_.Take();
  EXPECT_THAT(submitted.request.prompt, ElementsAre(256, 'a', 'b'));
  EXPECT_EQ(submitted.request.deadline, absl::InfiniteFuture());
  submitted.sink->OnDelta(TextDelta(0, "x"));
  submitted.sink->OnDelta(TextDelta(1, "y"));
  submitted.sink->OnFinished(Finished(1, 1));
  submitted.sink->OnDelta(TextDelta(0, "z"));
  submitted.sink->OnFinished(Finished(0, 2));
  engine::UsageEvent usage;
  usage.prompt_tokens = 3;
  usage.output_tokens = 3;
  usage.total_time = absl::Milliseconds(1500);
  submitted.sink->OnDone(absl::OkStatus(), usage);

  const Answer answer = Drain(*reader);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  const v1::Accepted& accepted = answer.messages.front().accepted();
  EXPECT_EQ(accepted.request_id(), "mine");
  EXPECT_EQ(accepted.model(), "bytes");
  EXPECT_EQ(accepted.determinism(), v1::DETERMINISM_PORTABLE);
  EXPECT_EQ(accepted.numerics_id(), "v1/test");
  EXPECT_EQ(accepted.seed(), 4711u);
  EXPECT_EQ(accepted.prompt_tokens(), 3);
  EXPECT_THAT(accepted.prompt_token_ids(), ElementsAre(256, 'a', 'b'));
  EXPECT_EQ(answer.TextOf(0), "xz");
  EXPECT_EQ(answer.TextOf(1), "y");
  EXPECT_EQ(answer.messages.back().usage().output_tokens(), 3);
  EXPECT_EQ(answer.messages.back().usage().total_seconds(), 1.5);
  std::vector<std::string> hashes;
  for (const auto& message : answer.messages) {
    if (message.has_finished()) hashes.push_back(message.finished().logits_sha256());
  }
  EXPECT_THAT(hashes, ElementsAre("hash1", "hash0"));
}

engine::DeltaEvent MarginDelta(const std::string& text, std::vector<float> margins) {
  engine::DeltaEvent event = TextDelta(0, text);
  event.top_margins = std::move(margins);
  return event;
}

TEST_F(GenerationServiceTest, MarginsComeWithoutACalibration) {
  v1::GenerateRequest request = TextRequest();
  request.set_return_fragility(true);
  grpc::ClientContext call;
  auto reader = stub_->Generate(&call, request);
  FakeEngine::Submitted submitted = engine_.Take();
  EXPECT_TRUE(submitted.request.return_top_margins);
  submitted.sink->OnDelta(MarginDelta("xy", {0.5F, 2}));
  submitted.sink->OnDelta(MarginDelta("z", {0.25F}));
  submitted.sink->OnFinished(Finished(0, 3));
  submitted.sink->OnDone(absl::OkStatus(), {});

  std::vector<float> margins;
  int finished = 0;
  for (const v1::GenerateResponse& message : Drain(*reader).messages) {
    for (float margin : message.delta().top_margins()) margins.push_back(margin);
    EXPECT_EQ(message.delta().top_margins_size(), message.delta().token_ids_size());
    if (!message.has_finished()) continue;
    ++finished;
    EXPECT_FALSE(message.finished().has_fragility());
  }
  EXPECT_THAT(margins, ElementsAre(0.5F, 2, 0.25F));
  EXPECT_EQ(finished, 1);
}

TEST_F(GenerationServiceTest, FragilityComesWhenAskedOfACalibratedServer) {
  // Half of the drops reach 1.
  fragility::Calibration& calibration = context_.fragility_calibration.emplace();
  calibration.drift.Add(1);
  calibration.drift.Add(0);
  calibration.fragile_margin = 2;
  calibration.rate = {.value = 1, .low = 1, .high = 1};
  for (bool asks : {true, false}) {
    v1::GenerateRequest request = TextRequest();
    request.set_return_fragility(asks);
    request.set_determinism(v1::DETERMINISM_THROUGHPUT);
    request.mutable_sampling()->set_temperature(0);
    grpc::ClientContext call;
    auto reader = stub_->Generate(&call, request);
    FakeEngine::Submitted submitted = engine_.Take();
    EXPECT_EQ(submitted.request.return_top_margins, asks);
    submitted.sink->OnDelta(asks ? MarginDelta("xy", {1, 30}) : TextDelta(0, "xy"));
    submitted.sink->OnFinished(Finished(0, 2));
    submitted.sink->OnDone(absl::OkStatus(), {});
    int finished = 0;
    for (const v1::GenerateResponse& message : Drain(*reader).messages) {
      if (!message.has_finished()) continue;
      ++finished;
      EXPECT_EQ(message.finished().has_fragility(), asks);
      if (!asks) continue;
      EXPECT_EQ(message.finished().fragility().fragile_tokens(), 1);
      EXPECT_NEAR(message.finished().fragility().probability(), 0.5, 1e-12);
    }
    EXPECT_EQ(finished, 1);
  }
}

TEST_F(GenerationServiceTest, AcceptedIsFirstEvenWhenTheEngineIsFaster) {
  engine_.on_submit = [](engine::ResponseSink& sink) {
    sink.OnDelta(TextDelta(0, "fast"));
    sink.OnFinished(Finished(0, 4));
    sink.OnDone(absl::OkStatus(), {});
  };
  const Answer answer = Generate(TextRequest());
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  ASSERT_EQ(answer.messages.size(), 4u);
  EXPECT_TRUE(answer.messages[0].has_accepted());
  EXPECT_THAT(answer.messages[0].accepted().request_id(), StartsWith("made-"));
  EXPECT_EQ(answer.messages[1].delta().text(), "fast");
  EXPECT_TRUE(answer.messages[2].has_finished());
  EXPECT_TRUE(answer.messages[3].has_usage());
}

TEST_F(GenerationServiceTest, RefusalsKeepCodeAndMessage) {
  for (const absl::Status& status :
       {absl::ResourceExhaustedError("the queue is full"), absl::UnavailableError("draining"),
        absl::FailedPreconditionError("determinism: no"), absl::InvalidArgumentError("prompt: x"),
        absl::InternalError("broken")}) {
    engine_.submit_status = status;
    const Answer answer = Generate(TextRequest());
    EXPECT_EQ(static_cast<int>(answer.status.error_code()), static_cast<int>(status.code()));
    EXPECT_EQ(answer.status.error_message(), std::string(status.message()));
    EXPECT_TRUE(answer.messages.empty());
  }
}

TEST_F(GenerationServiceTest, DrainingRefusesGenerateAndAnswersTheRest) {
  context_.draining = true;
  EXPECT_EQ(Generate(TextRequest()).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  grpc::ClientContext call;
  v1::GetServerInfoResponse info;
  EXPECT_TRUE(stub_->GetServerInfo(&call, {}, &info).ok());
}

TEST_F(GenerationServiceTest, AnErrorInMidStreamComesAfterWhatWasGenerated) {
  grpc::ClientContext call;
  auto reader = stub_->Generate(&call, TextRequest());
  FakeEngine::Submitted submitted = engine_.Take();
  submitted.sink->OnDelta(TextDelta(0, "good"));
  submitted.sink->OnDone(absl::InternalError("layer 3: not finite"), {});
  const Answer answer = Drain(*reader);
  EXPECT_EQ(answer.TextOf(0), "good");
  EXPECT_FALSE(answer.messages.back().has_usage());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(answer.status.error_message(), "layer 3: not finite");
}

TEST_F(GenerationServiceTest, CancellingReachesTheEngine) {
  auto call = std::make_unique<grpc::ClientContext>();
  auto reader = stub_->Generate(call.get(), TextRequest());
  FakeEngine::Submitted submitted = engine_.Take();
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  call->TryCancel();
  engine_.WaitForCancel(submitted.id);
  // The engine may still be in its step.
  submitted.sink->OnDelta(TextDelta(0, "late"));
  submitted.sink->OnDone(absl::CancelledError("cancelled"), {});
  EXPECT_EQ(Drain(*reader).status.error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GenerationServiceTest, ACallThatVanishesBeforeSubmissionIsCancelledAfterIt) {
  auto call = std::make_unique<grpc::ClientContext>();
  // The client leaves while Submit runs.
  engine_.on_submit = [&](engine::ResponseSink&) { call->TryCancel(); };
  auto reader = stub_->Generate(call.get(), TextRequest());
  FakeEngine::Submitted submitted = engine_.Take();
  engine_.WaitForCancel(submitted.id);
  submitted.sink->OnDone(absl::CancelledError("cancelled"), {});
  EXPECT_EQ(Drain(*reader).status.error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(GenerationServiceTest, TheDeadlineReachesTheEngineAndItsAnswerTheClient) {
  grpc::ClientContext call;
  const absl::Time deadline = absl::Now() + absl::Hours(1);
  call.set_deadline(absl::ToChronoTime(deadline));
  auto reader = stub_->Generate(&call, TextRequest());
  FakeEngine::Submitted submitted = engine_.Take();
  EXPECT_LT(absl::AbsDuration(submitted.request.deadline - deadline), absl::Minutes(1));
  submitted.sink->OnDone(absl::DeadlineExceededError("the deadline passed"), {});
  EXPECT_EQ(Drain(*reader).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(GenerationServiceTest, ASlowReaderGetsFewerLargerMessages) {
  grpc::ClientContext call;
  auto reader = stub_->Generate(&call, TextRequest());
  FakeEngine::Submitted submitted = engine_.Take();
  std::string expected[2];
  for (int i = 0; i < 4000; ++i) {  // nothing is read meanwhile
    const std::string text = absl::StrCat(i, ",");
    expected[i % 2] += text;
    submitted.sink->OnDelta(TextDelta(i % 2, text));
  }
  submitted.sink->OnDone(absl::OkStatus(), {});
  const Answer answer = Drain(*reader);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.TextOf(0), expected[0]);
  EXPECT_EQ(answer.TextOf(1), expected[1]);
  EXPECT_THAT(answer.messages.size(), Lt(400u));
}

TEST_F(GenerationServiceTest, AReaderThatLagsTooFarIsEnded) {
  context_.max_pending_bytes = 10'000;
  grpc::ClientContext call;
  auto reader = stub_->Generate(&call, TextRequest());
  FakeEngine::Submitted submitted = engine_.Take();
  engine::ResponseSink* sink = submitted.sink.get();
  engine_.on_cancel = [&](engine::RequestId) {};
  const std::string text(500, 'x');
  for (int i = 0; i < 4000; ++i) sink->OnDelta(TextDelta(0, text));
  engine_.WaitForCancel(submitted.id);
  sink->OnDone(absl::CancelledError("cancelled"), {});
  const Answer answer = Drain(*reader);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("reads too slowly"));
}

TEST_F(GenerationServiceTest, LogprobsCarryTokenTextAsUtf8AndLargePromptsComeInParts) {
  grpc::ClientContext call;
  auto reader = stub_->Generate(&call, TextRequest());
  FakeEngine::Submitted submitted = engine_.Take();
  std::vector<engine::PositionLogprobs> prompt(3000);
  prompt[0].chosen.token = -1;
  for (size_t i = 1; i < prompt.size(); ++i) {
    prompt[i].chosen = {'a', -0.5f, 1};
    prompt[i].top.assign(20, {0xC3, -1.0f, 2});  // half a character
  }
  submitted.sink->OnPromptLogprobs(prompt);
  engine::DeltaEvent delta = TextDelta(0, "b");
  delta.logprobs.resize(1);
  delta.logprobs[0].chosen = {'b', -0.25f, 3};
  submitted.sink->OnDelta(delta);
  submitted.sink->OnDone(absl::OkStatus(), {});
  const Answer answer = Drain(*reader);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  std::vector<v1::PositionLogprobs> positions;
  for (const auto& message : answer.messages) {
    EXPECT_LT(message.ByteSizeLong(), size_t{2} << 20);
    for (const auto& position : message.prompt_logprobs().positions()) {
      positions.push_back(position);
    }
    if (message.has_delta()) {
      EXPECT_EQ(message.delta().logprobs(0).chosen().text(), "b");
      EXPECT_EQ(message.delta().logprobs(0).chosen().rank(), 3);
    }
  }
  ASSERT_EQ(positions.size(), prompt.size());
  EXPECT_FALSE(positions[0].has_chosen());
  EXPECT_EQ(positions[2999].chosen().text(), "a");
  EXPECT_EQ(positions[2999].top(19).text(), "\xEF\xBF\xBD");
}

TEST_F(GenerationServiceTest, BadRequestsNameTheField) {
  v1::GenerateRequest request = TextRequest();
  request.mutable_sampling()->set_top_p(1.5f);
  Answer answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(answer.status.error_message(), "sampling.top_p: 1.5 is not in (0, 1]");

  answer = Generate(TextRequest("bad \xff"));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(answer.status.error_message(), "text: not valid UTF-8 at byte 4");

  answer = Generate(TextRequest(std::string(1000, 'x')));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(answer.status.error_message(), StartsWith("text: 1001 prompt tokens leave no room"));

  request = TextRequest();
  request.clear_text();
  request.mutable_chat()->add_messages()->set_role("user");
  answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(answer.status.error_message(), StartsWith("chat: "));

  answer = Generate(TextRequest(std::string(2 << 20, 'x')));
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);

  engine_.submit_status = absl::InternalError(std::string(100'000, 'e'));
  answer = Generate(TextRequest());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(answer.status.error_message(), StartsWith("eeee"));
}

TEST_F(GenerationServiceTest, LongTextsGoThroughTheWorkers) {
  context_.inline_text_bytes = 0;
  engine_.on_submit = [](engine::ResponseSink& sink) { sink.OnDone(absl::OkStatus(), {}); };
  EXPECT_TRUE(Generate(TextRequest()).status.ok());

  TextWorkers full(1, 0);
  context_.text_workers = &full;
  const Answer answer = Generate(TextRequest());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  v1::TokenizeRequest tokenize;
  tokenize.set_text("ab");
  v1::TokenizeResponse ids;
  grpc::ClientContext call;
  EXPECT_EQ(stub_->Tokenize(&call, tokenize, &ids).error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST_F(GenerationServiceTest, TokenizeAndDetokenize) {
  v1::TokenizeRequest request;
  request.set_text("aé");
  request.set_return_tokens(true);
  v1::TokenizeResponse response;
  {
    grpc::ClientContext call;
    ASSERT_TRUE(stub_->Tokenize(&call, request, &response).ok());
  }
  EXPECT_THAT(response.ids(), ElementsAre(256, 'a', 0xC3, 0xA9));
  EXPECT_THAT(response.tokens(), ElementsAre("<end>", "a", "\xC3", "\xA9"));
  EXPECT_EQ(response.max_model_len(), 1000);

  v1::DetokenizeRequest back;
  for (int32_t id : response.ids()) back.add_ids(id);
  back.set_skip_special_tokens(true);
  v1::DetokenizeResponse text;
  {
    grpc::ClientContext call;
    ASSERT_TRUE(stub_->Detokenize(&call, back, &text).ok());
  }
  EXPECT_EQ(text.text(), "aé");

  const auto error_of = [&](auto&& edit) {
    v1::TokenizeRequest bad;
    edit(bad);
    grpc::ClientContext call;
    const grpc::Status status = stub_->Tokenize(&call, bad, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    return status.error_message();
  };
  EXPECT_THAT(error_of([](auto&) {}), StartsWith("input: "));
  EXPECT_THAT(error_of([](auto& r) { r.set_model("x"), r.set_text("x"); }), StartsWith("model: "));
  EXPECT_THAT(error_of([](auto& r) { r.set_text("\xff"); }), StartsWith("text: not valid UTF-8"));
  EXPECT_THAT(error_of([](auto& r) { r.mutable_chat(); }), StartsWith("chat.messages: is empty"));
  for (int64_t id : {int64_t{-1}, int64_t{257}, int64_t{1} << 32}) {
    v1::DetokenizeRequest bad;
    bad.add_ids(id);
    grpc::ClientContext call;
    const grpc::Status status = stub_->Detokenize(&call, bad, &text);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), StartsWith(absl::StrCat("ids[0]: token id ", id)));
  }
}

TEST_F(GenerationServiceTest, InfoCallsAnswer) {
  engine_.next_stats.scheduler.free_pages = 12;
  engine_.next_stats.steps.strong_steps = 3;
  engine_.next_stats.steps.model = absl::Milliseconds(250);
  grpc::ClientContext model_call, server_call;
  v1::GetModelInfoResponse model;
  ASSERT_TRUE(stub_->GetModelInfo(&model_call, {}, &model).ok());
  EXPECT_EQ(model.served_model_name(), "bytes");
  v1::GetServerInfoResponse server;
  ASSERT_TRUE(stub_->GetServerInfo(&server_call, {}, &server).ok());
  EXPECT_EQ(server.version(), "test");
  EXPECT_EQ(server.kv_pages_free(), 12);
  EXPECT_EQ(server.steps().strong_steps(), 3);
  EXPECT_EQ(server.steps().model_seconds(), 0.25);
}

TEST_F(GenerationServiceTest, ManyCallsAtOnceEndOnce) {
  constexpr int kCalls = 64;
  std::vector<std::unique_ptr<grpc::ClientContext>> calls;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> readers;
  for (int i = 0; i < kCalls; ++i) {
    calls.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub_->Generate(calls.back().get(), TextRequest()));
  }
  std::vector<FakeEngine::Submitted> submitted;
  for (int i = 0; i < kCalls; ++i) submitted.push_back(engine_.Take());
  for (int step = 0; step < 50; ++step) {
    for (auto& request : submitted) request.sink->OnDelta(TextDelta(0, "t"));
  }
  for (auto& request : submitted) request.sink->OnDone(absl::OkStatus(), {});
  submitted.clear();
  for (auto& reader : readers) {
    const Answer answer = Drain(*reader);
    EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    EXPECT_EQ(answer.TextOf(0), std::string(50, 't'));
  }
}

TEST(GrpcServer, APortInUseIsAnError) {
  ServiceContext context;
  GenerationService service(&context);
  auto first = GrpcServer::Start({.host = "127.0.0.1", .port = 0}, &service);
  ASSERT_TRUE(first.ok()) << first.status();
  GenerationService other(&context);
  auto second = GrpcServer::Start({.host = "127.0.0.1", .port = (*first)->port()}, &other);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("cannot listen on 127.0.0.1:"));
}

}  // namespace
}  // namespace verbatim::server
