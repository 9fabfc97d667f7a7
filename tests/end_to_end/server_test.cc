// The whole server, as users meet it: the real binary, a small real model, gRPC over loopback.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "grpcpp/client_context.h"
#include "tests/end_to_end/server_process.h"

namespace verbatim::end_to_end {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

const char kModel[] = "tests/fixtures/reference/gguf_llama_q4_1.gguf";

std::vector<std::string> Flags(std::vector<std::string> more = {}) {
  std::vector<std::string> flags = {std::string("--model=") + kModel, "--kv-cache-bytes=16MiB",
                                    "--threads=2"};
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

struct Answer {
  v1::Accepted accepted;
  std::vector<std::string> texts;
  std::vector<v1::Finished> finished;  // by sample
  v1::Usage usage;
  grpc::Status status;
};

Answer Read(grpc::ClientReader<v1::GenerateResponse>& reader) {
  Answer answer;
  v1::GenerateResponse message;
  const auto at = [](auto& list, int index) -> auto& {
    if (list.size() <= static_cast<size_t>(index)) list.resize(index + 1);
    return list[index];
  };
  while (reader.Read(&message)) {
    if (message.has_accepted()) answer.accepted = message.accepted();
    if (message.has_delta()) at(answer.texts, message.delta().index()) += message.delta().text();
    if (message.has_finished()) {
      at(answer.finished, message.finished().index()) = message.finished();
    }
    if (message.has_usage()) answer.usage = message.usage();
  }
  answer.status = reader.Finish();
  return answer;
}

Answer Generate(const ServerProcess& server, const v1::GenerateRequest& request) {
  grpc::ClientContext call;
  auto reader = server.stub().Generate(&call, request);
  return Read(*reader);
}

v1::GenerateRequest Request(const std::string& text, v1::Determinism determinism,
                            int64_t max_tokens) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.set_determinism(determinism);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

v1::GetServerInfoResponse Info(const ServerProcess& server) {
  grpc::ClientContext call;
  v1::GetServerInfoResponse info;
  const grpc::Status status = server.stub().GetServerInfo(&call, {}, &info);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return info;
}

// As many requests as it takes until the server says that nothing runs and no page is held.
v1::GetServerInfoResponse WaitForIdle(const ServerProcess& server) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  v1::GetServerInfoResponse info;
  do {
    info = Info(server);
    if (info.running_sequences() == 0 && info.waiting_sequences() == 0) break;
  } while (std::chrono::steady_clock::now() < give_up);
  return info;
}

TEST(Server, DeterministicRequestsRepeatTheirBitsUnderLoad) {
  ServerProcess server(Flags({"--max-num-batched-tokens=64", "--max-num-seqs=8"}));
  ASSERT_TRUE(server.ready()) << server.log();
  const auto load = [&](v1::Determinism determinism, int64_t seed) {
    for (int i = 0; i < 12; ++i) {
      const std::string prompt(static_cast<size_t>(1 + (seed * 37 + i * 53) % 200), 'a' + i);
      const Answer answer = Generate(server, Request(prompt, determinism, 1 + (seed + i * 7) % 40));
      EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
    }
  };
  std::vector<std::thread> others;
  for (int64_t i = 0; i < 4; ++i) {
    others.emplace_back(load, i % 2 == 0 ? v1::DETERMINISM_THROUGHPUT : v1::DETERMINISM_PORTABLE,
                        i);
  }
  std::set<std::string> hashes, texts, ids;
  for (int i = 0; i < 12; ++i) {
    const Answer answer =
        Generate(server, Request("The weather was", v1::DETERMINISM_PORTABLE, 48));
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    ASSERT_EQ(answer.finished.size(), 1u);
    EXPECT_EQ(answer.finished[0].reason(), v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(answer.finished[0].output_tokens(), 48);
    EXPECT_EQ(answer.usage.output_tokens(), 48);
    EXPECT_EQ(answer.finished[0].logits_sha256().size(), 64u);
    EXPECT_FALSE(answer.accepted.numerics_id().empty());
    hashes.insert(answer.finished[0].logits_sha256());
    texts.insert(answer.texts.at(0));
    ids.insert(answer.accepted.request_id());
  }
  for (std::thread& thread : others) thread.join();
  EXPECT_EQ(hashes.size(), 1u);
  EXPECT_EQ(texts.size(), 1u);
  EXPECT_EQ(ids.size(), 12u);
  EXPECT_GT(WaitForIdle(server).steps().strong_steps(), 0);
}

TEST(Server, ASeedRepeatsItsSamplesAndTheServerReportsTheOneItDrew) {
  ServerProcess server(Flags());
  ASSERT_TRUE(server.ready()) << server.log();
  v1::GenerateRequest request = Request("abc", v1::DETERMINISM_PORTABLE, 24);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_n(3);
  const Answer drawn = Generate(server, request);
  ASSERT_TRUE(drawn.status.ok()) << drawn.status.error_message();
  ASSERT_EQ(drawn.texts.size(), 3u);
  EXPECT_NE(drawn.texts[0], drawn.texts[1]);
  request.mutable_sampling()->set_seed(drawn.accepted.seed());
  const Answer repeated = Generate(server, request);
  EXPECT_EQ(repeated.texts, drawn.texts);
  request.mutable_sampling()->clear_seed();
  const Answer fresh = Generate(server, request);
  EXPECT_NE(fresh.accepted.seed(), drawn.accepted.seed());
  EXPECT_NE(fresh.texts, drawn.texts);
}

TEST(Server, BadRequestsAreRefusedAndNeighboursNoticeNothing) {
  ServerProcess server(Flags());
  ASSERT_TRUE(server.ready()) << server.log();
  const v1::GenerateRequest good = Request("neighbour", v1::DETERMINISM_PORTABLE, 200);
  const Answer alone = Generate(server, good);
  ASSERT_TRUE(alone.status.ok()) << alone.status.error_message();
  grpc::ClientContext call;
  auto neighbour = server.stub().Generate(&call, good);

  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  using Edit = std::function<void(v1::GenerateRequest&)>;
  std::vector<std::pair<std::string, Edit>> cases;
  using P = v1::SamplingParams;
  const std::vector<std::pair<std::string, void (P::*)(float)>> floats = {
      {"temperature", &P::set_temperature},
      {"top_p", &P::set_top_p},
      {"min_p", &P::set_min_p},
      {"presence_penalty", &P::set_presence_penalty},
      {"frequency_penalty", &P::set_frequency_penalty},
      {"repetition_penalty", &P::set_repetition_penalty}};
  for (const auto& [name, set] : floats) {
    for (float value : {1e30f, kNan, kInf, -kInf}) {
      const auto setter = set;
      cases.emplace_back("sampling." + name + ": ",
                         [=](auto& r) { (r.mutable_sampling()->*setter)(value); });
    }
  }
  for (int64_t n : {int64_t{-1}, int64_t{0}, int64_t{1'000'000}}) {
    cases.emplace_back("sampling.n: ", [=](auto& r) { r.mutable_sampling()->set_n(n); });
  }
  for (int64_t id : {int64_t{-1}, int64_t{293}, int64_t{1} << 32}) {
    cases.emplace_back("token_ids.ids[0]: ", [=](auto& r) { r.mutable_token_ids()->add_ids(id); });
    cases.emplace_back("sampling.stop_token_ids[0]: ",
                       [=](auto& r) { r.mutable_sampling()->add_stop_token_ids(id); });
    cases.emplace_back("sampling.logit_bias[",
                       [=](auto& r) { (*r.mutable_sampling()->mutable_logit_bias())[id] = 1; });
  }
  cases.emplace_back("sampling.max_tokens: ",
                     [](auto& r) { r.mutable_sampling()->set_max_tokens(1 << 20); });
  cases.emplace_back("sampling.logprobs: ",
                     [](auto& r) { r.mutable_sampling()->set_logprobs(1000); });
  cases.emplace_back("text: is empty", [](auto& r) { r.set_text(""); });
  cases.emplace_back("text: not valid UTF-8", [](auto& r) { r.set_text("\xff\xfe"); });
  cases.emplace_back("text: ", [](auto& r) { r.set_text(std::string(5000, 'z')); });
  cases.emplace_back("text: ", [](auto& r) { r.set_text(std::string(3'000'000, 'z')); });
  cases.emplace_back("prompt: ", [](auto& r) { r.clear_text(); });
  cases.emplace_back("model: ", [](auto& r) { r.set_model("gpt-5"); });
  cases.emplace_back("determinism: ",
                     [](auto& r) { r.set_determinism(static_cast<v1::Determinism>(9)); });
  cases.emplace_back("chat.messages", [](auto& r) {
    auto* message = r.mutable_chat()->add_messages();
    message->set_role("wizard");
    message->set_content("x");
  });
  for (const auto& [start, edit] : cases) {
    v1::GenerateRequest request = Request("x", v1::DETERMINISM_PORTABLE, 4);
    edit(request);
    const Answer answer = Generate(server, request);
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
        << start << answer.status.error_message();
    EXPECT_THAT(answer.status.error_message(), StartsWith(start));
  }

  const Answer beside = Read(*neighbour);
  ASSERT_TRUE(beside.status.ok()) << beside.status.error_message();
  EXPECT_EQ(beside.finished.at(0).logits_sha256(), alone.finished.at(0).logits_sha256());
  EXPECT_EQ(beside.texts, alone.texts);
  EXPECT_TRUE(Generate(server, good).status.ok());
}

TEST(Server, CancellingGivesBackEveryPage) {
  ServerProcess server(Flags({"--no-enable-prefix-caching", "--cpu-isa=scalar", "--threads=1"}));
  ASSERT_TRUE(server.ready()) << server.log();
  const int64_t total = Info(server).kv_pages_total();
  ASSERT_GT(total, 0);
  v1::GenerateRequest request = Request("x", v1::DETERMINISM_PORTABLE, 300);
  request.mutable_sampling()->set_n(8);
  request.mutable_sampling()->set_temperature(1);
  for (int i = 0; i < 5; ++i) {
    grpc::ClientContext call;
    auto reader = server.stub().Generate(&call, request);
    v1::GenerateResponse message;
    while (reader->Read(&message) && !message.has_delta()) {
    }
    ASSERT_TRUE(message.has_delta());
    call.TryCancel();
    EXPECT_EQ(Read(*reader).status.error_code(), grpc::StatusCode::CANCELLED);
  }
  const v1::GetServerInfoResponse info = WaitForIdle(server);
  EXPECT_EQ(info.running_sequences(), 0);
  EXPECT_EQ(info.kv_pages_free() + info.kv_pages_cached(), total);
  // Five times eight samples of 300 tokens did not run to their end.
  EXPECT_LT(info.steps().generated_tokens(), 5 * 8 * 300);
}

TEST(Server, AFullQueueRefuses) {
  ServerProcess server(Flags({"--max-queued-requests=4"}));
  ASSERT_TRUE(server.ready()) << server.log();
  v1::GenerateRequest request = Request("x", v1::DETERMINISM_THROUGHPUT, 4);
  request.mutable_sampling()->set_n(5);
  const Answer answer = Generate(server, request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Generate(server, Request("x", v1::DETERMINISM_THROUGHPUT, 4)).status.ok());
}

TEST(Server, StandardServicesAndInfoAnswer) {
  const std::string port_file =
      (std::filesystem::path(::testing::TempDir()) / ("verbatim_port_" + std::to_string(getpid())))
          .string();
  std::filesystem::remove(port_file);
  ServerProcess server(Flags({"--served-model-name=tiny", "--port-file=" + port_file}));
  ASSERT_TRUE(server.ready()) << server.log();
  EXPECT_EQ(CheckHealth(server.channel(), ""), 1);
  EXPECT_EQ(CheckHealth(server.channel(), "verbatim.v1.VerbatimService"), 1);
  EXPECT_THAT(ListServices(server.channel()), HasSubstr("verbatim.v1.VerbatimService"));
  std::string port;
  std::ifstream(port_file) >> port;
  EXPECT_EQ(server.address(), "127.0.0.1:" + port);

  grpc::ClientContext model_call, tokenize_call, detokenize_call;
  v1::GetModelInfoResponse model;
  ASSERT_TRUE(server.stub().GetModelInfo(&model_call, {}, &model).ok());
  EXPECT_EQ(model.served_model_name(), "tiny");
  EXPECT_EQ(model.family(), "llama");
  EXPECT_EQ(model.vocab_size(), 293);
  EXPECT_EQ(model.chat_family(), "chatml");
  EXPECT_EQ(model.weights_sha256().size(), 64u);
  EXPECT_EQ(model.tokenizer_sha256().size(), 64u);
  const v1::GetServerInfoResponse info = Info(server);
  EXPECT_THAT(info.backend(), StartsWith("cpu "));
  EXPECT_EQ(info.policies_size(), 3);
  EXPECT_EQ(info.configuration().at("max-model-len"), std::to_string(model.max_model_len()));
  EXPECT_EQ(info.configuration().at("served-model-name"), "tiny");
  EXPECT_GT(info.load_seconds(), 0);

  v1::TokenizeRequest tokenize;
  tokenize.set_text("some text, häh?");
  v1::TokenizeResponse tokens;
  ASSERT_TRUE(server.stub().Tokenize(&tokenize_call, tokenize, &tokens).ok());
  v1::DetokenizeRequest detokenize;
  detokenize.set_skip_special_tokens(true);
  for (int32_t id : tokens.ids()) detokenize.add_ids(id);
  v1::DetokenizeResponse text;
  ASSERT_TRUE(server.stub().Detokenize(&detokenize_call, detokenize, &text).ok());
  EXPECT_EQ(text.text(), "some text, häh?");
}

TEST(Server, ChatAndLogprobs) {
  ServerProcess server(Flags());
  ASSERT_TRUE(server.ready()) << server.log();
  v1::GenerateRequest request = Request("", v1::DETERMINISM_PINNED, 5);
  auto* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content("hello");
  request.mutable_sampling()->set_logprobs(2);
  request.mutable_sampling()->set_prompt_logprobs(1);
  grpc::ClientContext call;
  auto reader = server.stub().Generate(&call, request);
  v1::GenerateResponse response;
  int prompt_positions = 0, output_positions = 0;
  int64_t prompt_tokens = -1;
  while (reader->Read(&response)) {
    if (response.has_accepted()) prompt_tokens = response.accepted().prompt_tokens();
    for (const auto& position : response.prompt_logprobs().positions()) {
      EXPECT_EQ(position.has_chosen(), prompt_positions > 0);
      ++prompt_positions;
    }
    for (const auto& position : response.delta().logprobs()) {
      ++output_positions;
      ASSERT_EQ(position.top_size(), 2);
      // Greedy: the token taken is the most probable one.
      EXPECT_EQ(position.chosen().token(), position.top(0).token());
      EXPECT_EQ(position.chosen().rank(), 1);
      EXPECT_LE(position.chosen().logprob(), 0);
    }
  }
  const grpc::Status status = reader->Finish();
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(prompt_positions, prompt_tokens);
  EXPECT_EQ(output_positions, 5);
}

// A request that takes a while on one thread without SIMD.
std::vector<std::string> SlowFlags() { return Flags({"--cpu-isa=scalar", "--threads=1"}); }

v1::GenerateRequest LongRequest() {
  v1::GenerateRequest request = Request("x", v1::DETERMINISM_PORTABLE, 200);
  request.mutable_sampling()->set_n(32);
  request.mutable_sampling()->set_temperature(1);
  return request;
}

TEST(Server, SigtermDrains) {
  ServerProcess server(SlowFlags());
  ASSERT_TRUE(server.ready()) << server.log();
  grpc::ClientContext call;
  auto reader = server.stub().Generate(&call, LongRequest());
  v1::GenerateResponse first;
  ASSERT_TRUE(reader->Read(&first));
  server.Signal(SIGTERM);
  int health;
  do {
    health = CheckHealth(server.channel(), "");
  } while (health == 1);
  EXPECT_EQ(health, 2);
  const Answer refused = Generate(server, Request("y", v1::DETERMINISM_PORTABLE, 1));
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  const Answer answer = Read(*reader);
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.usage.output_tokens(), 32 * 200);
  EXPECT_EQ(server.Wait(), 0) << server.log();
}

TEST(Server, TheDrainTimeoutAndASecondSignalEndRequests) {
  for (const bool second_signal : {false, true}) {
    std::vector<std::string> flags = SlowFlags();
    flags.push_back(second_signal ? "--drain-timeout-s=600" : "--drain-timeout-s=0");
    ServerProcess server(flags);
    ASSERT_TRUE(server.ready()) << server.log();
    grpc::ClientContext call;
    auto reader = server.stub().Generate(&call, LongRequest());
    v1::GenerateResponse first;
    ASSERT_TRUE(reader->Read(&first));
    server.Signal(SIGTERM);
    if (second_signal) {
      while (CheckHealth(server.channel(), "") == 1) {
      }
      server.Signal(SIGINT);
    }
    const Answer answer = Read(*reader);
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(server.Wait(), second_signal ? 128 + SIGINT : 0) << server.log();
  }
}

TEST(Server, StartUpErrorsNameFileOrFlag) {
  {
    ServerProcess server({"--model=does/not/exist.gguf"});
    EXPECT_FALSE(server.ready());
    EXPECT_EQ(server.Wait(), 1);
    EXPECT_THAT(server.log(), HasSubstr("does/not/exist.gguf"));
  }
  {
    const std::string path = (std::filesystem::path(::testing::TempDir()) /
                              ("cut_" + std::to_string(getpid()) + ".gguf"))
                                 .string();
    std::filesystem::copy_file(kModel, path, std::filesystem::copy_options::overwrite_existing);
    std::filesystem::resize_file(path, std::filesystem::file_size(path) / 2);
    ServerProcess server({"--model=" + path});
    EXPECT_FALSE(server.ready());
    EXPECT_EQ(server.Wait(), 1);
    EXPECT_THAT(server.log(), HasSubstr(path));
    EXPECT_THAT(server.log(), HasSubstr("offset"));
  }
  {
    ServerProcess server(Flags({"--max-num-seqs=0"}));
    EXPECT_EQ(server.Wait(), 2);
    EXPECT_THAT(server.log(), HasSubstr("--max-num-seqs: 0"));
  }
  {
    ServerProcess server(Flags({"--max-model-len=1000000"}));
    EXPECT_EQ(server.Wait(), 2);
    EXPECT_THAT(server.log(), HasSubstr("--max-model-len: 1000000"));
  }
  ServerProcess first(Flags());
  ASSERT_TRUE(first.ready());
  const std::string port = first.address().substr(first.address().find(':') + 1);
  ServerProcess second(Flags({"--port=" + port}));
  EXPECT_FALSE(second.ready());
  EXPECT_EQ(second.Wait(), 1);
  EXPECT_THAT(second.log(), HasSubstr("cannot listen on " + first.address()));
}

}  // namespace
}  // namespace verbatim::end_to_end
