// Walks every flag of `verbatim serve`: whatever it is set to, deterministic answers keep their
// bits, or what cannot be honoured is refused by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "grpcpp/client_context.h"
#include "tests/end_to_end/server_process.h"

namespace verbatim::end_to_end {
namespace {

using ::testing::HasSubstr;

const char kModel[] = "tests/fixtures/reference/gguf_llama_q4_1.gguf";

// A case with this flag is compared with a plain server of that model.
const char kMoeModel[] = "--model=tests/fixtures/reference/gguf_mixtral_q4_1.gguf";

enum class Outcome {
  kSameBits,        // both strong policies answer with the bits of the plain server
  kOtherId,         // as kSameBits, or the numerics id says that other bits are to be expected
  kRefusesStart,    // the server does not start and says why
  kRefusesRequest,  // requests of a policy get FAILED_PRECONDITION and the reason
  kNoInfluence,     // not tried: `why` says why it cannot reach the arithmetic
};

struct Case {
  Outcome outcome;
  std::vector<std::string> flags;
  std::string why;  // of kNoInfluence; of a refusal, what the message must hold
};

// A new flag needs an entry here.
const std::multimap<std::string, Case>& Cases() {
  static const auto* const cases = new std::multimap<std::string, Case>{
      {"model",
       {Outcome::kNoInfluence, {}, "the model is part of the question; every case sets it"}},
      {"host", {Outcome::kNoInfluence, {}, "an address; every case sets one"}},
      {"port", {Outcome::kNoInfluence, {}, "an address; every case sets one"}},
      {"port-file", {Outcome::kNoInfluence, {}, "written before the first request"}},
      {"drain-timeout-s", {Outcome::kSameBits, {"--drain-timeout-s=1"}, ""}},
      {"served-model-name", {Outcome::kSameBits, {"--served-model-name=other"}, ""}},
      {"max-model-len", {Outcome::kSameBits, {"--max-model-len=200"}, ""}},
      {"dtype", {Outcome::kSameBits, {"--dtype=bfloat16"}, ""}},
      {"default-determinism", {Outcome::kSameBits, {"--default-determinism=portable"}, ""}},
      {"determinism-policies",
       {Outcome::kSameBits, {"--determinism-policies=throughput,portable,pinned"}, ""}},
      {"determinism-policies",
       {Outcome::kRefusesRequest,
        {"--determinism-policies=throughput"},
        "this server's --determinism-policies are throughput"}},
      {"determinism-policies",
       {Outcome::kRefusesStart, {"--determinism-policies=exact"}, "'exact' is not one of"}},
      {"determinism-policies",
       {Outcome::kRefusesStart,
        {"--determinism-policies=pinned"},
        "--default-determinism: throughput is not among"}},
      {"seed", {Outcome::kSameBits, {"--seed=99"}, ""}},
      {"max-logprobs", {Outcome::kSameBits, {"--max-logprobs=5"}, ""}},
      {"receipts", {Outcome::kSameBits, {"--no-receipts"}, ""}},
      {"receipt-signing-key",
       {Outcome::kRefusesStart,
        {"--receipt-signing-key=no-such.pem"},
        "--receipt-signing-key: no-such.pem: No such file"}},
      {"receipt-signing-key",
       {Outcome::kRefusesStart,
        {"--no-receipts", "--receipt-signing-key=key.pem"},
        "--receipt-signing-key: has nothing to sign"}},
      // Asked twice, the second time from memory.
      {"response-cache", {Outcome::kSameBits, {"--response-cache=4"}, ""}},
      {"fragility-calibration",
       {Outcome::kRefusesStart,
        {"--fragility-calibration=no/such/calibration.json"},
        "--fragility-calibration: no/such/calibration.json: cannot be read"}},
      {"allow-traces", {Outcome::kSameBits, {"--allow-traces"}, ""}},
      {"moe-capacity-factor", {Outcome::kSameBits, {kMoeModel, "--moe-capacity-factor=0.5"}, ""}},
      {"moe-capacity-factor",
       {Outcome::kRefusesStart,
        {"--moe-capacity-factor=0.5"},
        "--moe-capacity-factor: the model is not a mixture"}},
      {"moe-capacity-factor",
       {Outcome::kRefusesStart,
        {kMoeModel, "--moe-capacity-factor=-1"},
        "--moe-capacity-factor: -1 is not in"}},
      {"moe-overflow",
       {Outcome::kSameBits, {kMoeModel, "--moe-capacity-factor=0.5", "--moe-overflow=next"}, ""}},
      {"moe-capacity-scope",
       {Outcome::kRefusesRequest,
        {kMoeModel, "--moe-capacity-factor=0.5", "--moe-capacity-scope=all"},
        "the expert layers are limited for every request (--moe-capacity-scope all), so that "
        "neighbours decide which experts answer"}},
      {"moe-capacity-scope",
       {Outcome::kRefusesStart,
        {kMoeModel, "--moe-capacity-factor=0.5", "--moe-capacity-scope=all",
         "--default-determinism=pinned"},
        "--default-determinism: pinned cannot be honoured"}},
      {"max-queued-requests", {Outcome::kSameBits, {"--max-queued-requests=16"}, ""}},
      {"max-queued-tokens", {Outcome::kSameBits, {"--max-queued-tokens=4000"}, ""}},
      {"batching-policy",
       {Outcome::kSameBits, {"--batching-policy=dynamic", "--max-batch-delay-ms=1"}, ""}},
      {"batching-policy",
       {Outcome::kSameBits, {"--batching-policy=fixed", "--flush-timeout-ms=5"}, ""}},
      {"max-batch-delay-ms",
       {Outcome::kSameBits, {"--batching-policy=dynamic", "--max-batch-delay-ms=9"}, ""}},
      {"flush-timeout-ms",
       {Outcome::kSameBits,
        {"--batching-policy=fixed", "--max-num-seqs=3", "--flush-timeout-ms=9"},
        ""}},
      {"max-num-seqs", {Outcome::kSameBits, {"--max-num-seqs=1"}, ""}},
      {"max-num-seqs", {Outcome::kSameBits, {"--max-num-seqs=3"}, ""}},
      {"max-num-batched-tokens",
       {Outcome::kSameBits, {"--max-num-seqs=5", "--max-num-batched-tokens=5"}, ""}},
      {"max-num-batched-tokens", {Outcome::kSameBits, {"--max-num-batched-tokens=1500"}, ""}},
      {"kv-cache-bytes",
       {Outcome::kSameBits, {"--kv-cache-bytes=192KiB", "--max-model-len=200"}, ""}},
      {"kv-cache-dtype", {Outcome::kOtherId, {"--kv-cache-dtype=bfloat16"}, ""}},
      {"kv-cache-dtype", {Outcome::kSameBits, {"--kv-cache-dtype=float32"}, ""}},
      {"block-size", {Outcome::kSameBits, {"--block-size=16"}, ""}},
      {"block-size", {Outcome::kSameBits, {"--block-size=64"}, ""}},
      {"block-size", {Outcome::kSameBits, {"--block-size=256"}, ""}},
      {"enable-prefix-caching", {Outcome::kSameBits, {"--no-enable-prefix-caching"}, ""}},
      {"threads", {Outcome::kSameBits, {"--threads=1"}, ""}},
      {"threads", {Outcome::kSameBits, {"--threads=3"}, ""}},
      {"cpu-isa", {Outcome::kOtherId, {"--cpu-isa=scalar"}, ""}},
      {"cpu-isa", {Outcome::kOtherId, {"--cpu-isa=avx2"}, ""}},
      {"cpu-isa", {Outcome::kOtherId, {"--cpu-isa=avx512"}, ""}},
      {"device", {Outcome::kRefusesStart, {"--device=abacus"}, "--device: 'abacus'"}},
      {"pinned-gemm",
       {Outcome::kRefusesStart, {"--pinned-gemm=mma"}, "--pinned-gemm: mma is for --device cuda"}},
      {"enforce-eager",
       {Outcome::kRefusesStart, {"--enforce-eager"}, "--enforce-eager: is for --device cuda"}},
      {"gpu-memory-utilization",
       {Outcome::kRefusesStart,
        {"--gpu-memory-utilization=0.5"},
        "--gpu-memory-utilization: is for --device cuda"}},
      {"tensor-parallel-size",
       {Outcome::kRefusesStart, {"--tensor-parallel-size=3"}, "--tensor-parallel-size: 3"}},
      {"tensor-parallel-size",
       {Outcome::kRefusesStart, {"--tensor-parallel-size=2"}, "--tensor-parallel-size: 2"}},
  };
  return *cases;
}

std::vector<std::string> WithModel(std::vector<std::string> flags) {
  // The last occurrence of a flag wins.
  flags.insert(flags.begin(), {std::string("--model=") + kModel, "--kv-cache-bytes=16MiB"});
  return flags;
}

v1::GetServerInfoResponse Info(const ServerProcess& server) {
  grpc::ClientContext call;
  v1::GetServerInfoResponse info;
  const grpc::Status status = server.stub().GetServerInfo(&call, {}, &info);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return info;
}

std::map<v1::Determinism, v1::PolicyInfo> Policies(const v1::GetServerInfoResponse& info) {
  std::map<v1::Determinism, v1::PolicyInfo> out;
  for (const v1::PolicyInfo& policy : info.policies()) out[policy.determinism()] = policy;
  return out;
}

// Prompts of 5, 60 and 150 tokens, greedy and sampled.
std::vector<v1::GenerateRequest> Requests(v1::Determinism determinism) {
  std::vector<v1::GenerateRequest> out;
  for (const int length : {5, 60, 150}) {
    v1::GenerateRequest request;
    for (int i = 0; i < length; ++i) {
      request.mutable_token_ids()->add_ids(10 + (i * 37 + length) % 200);
    }
    request.set_determinism(determinism);
    v1::SamplingParams& sampling = *request.mutable_sampling();
    sampling.set_temperature(length == 60 ? 0.9f : 0.0f);
    sampling.set_seed(static_cast<uint64_t>(length));
    sampling.set_ignore_eos(true);
    sampling.set_max_tokens(length == 150 ? 40 : 12);
    sampling.set_logprobs(3);
    out.push_back(request);
  }
  return out;
}

struct Answer {
  std::string logits_sha256;
  std::vector<int32_t> tokens;
  std::vector<uint32_t> logprob_bits;
  std::string numerics_id;
  grpc::Status status;

  friend bool operator==(const Answer& x, const Answer& y) {
    return x.logits_sha256 == y.logits_sha256 && x.tokens == y.tokens &&
           x.logprob_bits == y.logprob_bits;
  }
};

void Take(const v1::GenerateResponse& message, Answer* answer) {
  const auto add = [&](const v1::TokenLogprob& entry) {
    const float logprob = entry.logprob();
    uint32_t bits;
    std::memcpy(&bits, &logprob, sizeof(bits));
    answer->logprob_bits.push_back(bits);
  };
  if (message.has_accepted()) answer->numerics_id = message.accepted().numerics_id();
  for (const int32_t token : message.delta().token_ids()) answer->tokens.push_back(token);
  for (const v1::PositionLogprobs& position : message.delta().logprobs()) {
    add(position.chosen());
    for (const v1::TokenLogprob& top : position.top()) add(top);
  }
  if (message.has_finished()) answer->logits_sha256 = message.finished().logits_sha256();
}

// All requests in flight together.
std::vector<Answer> Ask(const ServerProcess& server,
                        const std::vector<v1::GenerateRequest>& requests) {
  struct Stream {
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
  };
  std::vector<std::unique_ptr<Stream>> streams;
  for (const v1::GenerateRequest& request : requests) {
    streams.push_back(std::make_unique<Stream>());
    streams.back()->reader = server.stub().Generate(&streams.back()->context, request);
  }
  std::vector<Answer> answers(requests.size());
  for (size_t i = 0; i < streams.size(); ++i) {
    v1::GenerateResponse message;
    while (streams[i]->reader->Read(&message)) Take(message, &answers[i]);
    answers[i].status = streams[i]->reader->Finish();
  }
  return answers;
}

const v1::Determinism kStrong[] = {v1::DETERMINISM_PINNED, v1::DETERMINISM_PORTABLE};

class ConfigurationTest : public ::testing::Test {
 protected:
  // The plain servers' answers, each request alone, and their numerics ids.
  static void SetUpTestSuite() {
    for (const bool moe : {false, true}) {
      ServerProcess server(
          WithModel(moe ? std::vector<std::string>{kMoeModel} : std::vector<std::string>{}));
      ASSERT_TRUE(server.ready()) << server.log();
      const v1::GetServerInfoResponse info = Info(server);
      for (const auto& [name, value] : info.configuration()) flags_.insert(name);
      for (const v1::Determinism policy : kStrong) {
        ids_[policy] = Policies(info)[policy].numerics_id();
        EXPECT_FALSE(ids_[policy].empty());
        for (const v1::GenerateRequest& request : Requests(policy)) {
          answers_[moe][policy].push_back(Ask(server, {request}).front());
          EXPECT_TRUE(answers_[moe][policy].back().status.ok());
          EXPECT_EQ(answers_[moe][policy].back().logits_sha256.size(), 64u);
        }
      }
    }
  }

  static void ExpectSameBits(const Case& c, const std::string& label) {
    ServerProcess server(WithModel(c.flags));
    if (!server.ready()) {
      server.Wait();
      // Only an instruction set that this machine lacks.
      EXPECT_THAT(server.log(), HasSubstr("isa: this machine has no")) << label;
      return;
    }
    std::map<v1::Determinism, v1::PolicyInfo> policies = Policies(Info(server));
    for (const v1::Determinism policy : kStrong) {
      EXPECT_TRUE(policies[policy].honoured()) << label;
      // Among throughput requests; twice, so that caches have something to give.
      std::vector<v1::GenerateRequest> requests = Requests(policy);
      for (int i = 0; i < 2; ++i) {
        for (const v1::GenerateRequest& other : Requests(v1::DETERMINISM_THROUGHPUT)) {
          requests.push_back(other);
        }
      }
      const bool moe = std::find(c.flags.begin(), c.flags.end(), kMoeModel) != c.flags.end();
      const std::vector<Answer>& expected = answers_[moe][policy];
      std::vector<Answer> answers = Ask(server, requests);
      answers.resize(expected.size());
      std::vector<Answer> again = Ask(server, requests);
      answers.insert(answers.end(), again.begin(), again.begin() + expected.size());
      const bool same_id = policies[policy].numerics_id() == ids_[policy];
      EXPECT_TRUE(same_id || c.outcome == Outcome::kOtherId) << label;
      for (size_t i = 0; i < answers.size(); ++i) {
        EXPECT_TRUE(answers[i].status.ok()) << label << ": " << answers[i].status.error_message();
        EXPECT_EQ(answers[i].numerics_id, policies[policy].numerics_id()) << label;
        if (same_id) {
          const Answer& base = expected[i % expected.size()];
          EXPECT_TRUE(answers[i] == base)
              << label << ": " << v1::Determinism_Name(policy) << " request " << i << " has chain "
              << answers[i].logits_sha256 << " instead of " << base.logits_sha256;
        }
      }
    }
  }

  static void ExpectRefusesStart(const Case& c, const std::string& label) {
    ServerProcess server(WithModel(c.flags));
    EXPECT_FALSE(server.ready()) << label;
    EXPECT_NE(server.Wait(), 0) << label;
    EXPECT_THAT(server.log(), HasSubstr(c.why)) << label;
  }

  static void ExpectRefusesRequest(const Case& c, const std::string& label) {
    ServerProcess server(WithModel(c.flags));
    ASSERT_TRUE(server.ready()) << label << ": " << server.log();
    std::map<v1::Determinism, v1::PolicyInfo> policies = Policies(Info(server));
    for (const v1::Determinism policy : kStrong) {
      EXPECT_FALSE(policies[policy].honoured()) << label;
      EXPECT_EQ(policies[policy].refusal(), c.why) << label;
      const grpc::Status status = Ask(server, {Requests(policy)[0]})[0].status;
      EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << label;
      EXPECT_THAT(status.error_message(), HasSubstr(c.why)) << label;
      EXPECT_THAT(status.error_message(), HasSubstr("cannot be honoured")) << label;
    }
    // The others are served.
    EXPECT_TRUE(policies[v1::DETERMINISM_THROUGHPUT].honoured());
    const grpc::Status status = Ask(server, {Requests(v1::DETERMINISM_THROUGHPUT)[0]})[0].status;
    EXPECT_TRUE(status.ok()) << status.error_message();
  }

  static std::set<std::string> flags_;
  static std::map<v1::Determinism, std::string> ids_;
  // By model, the second being the mixture of experts.
  static std::map<v1::Determinism, std::vector<Answer>> answers_[2];
};

std::set<std::string> ConfigurationTest::flags_;
std::map<v1::Determinism, std::string> ConfigurationTest::ids_;
std::map<v1::Determinism, std::vector<Answer>> ConfigurationTest::answers_[2];

TEST_F(ConfigurationTest, EveryFlagHasAnEntry) {
  std::set<std::string> known;
  for (const auto& [flag, c] : Cases()) {
    known.insert(flag);
    EXPECT_TRUE(flags_.contains(flag)) << "--" << flag << " is no flag of the server any more";
    EXPECT_TRUE(c.outcome != Outcome::kNoInfluence || !c.why.empty()) << flag;
  }
  for (const std::string& flag : flags_) {
    EXPECT_TRUE(known.contains(flag))
        << "--" << flag << " is new: say in this test what it does to deterministic answers";
  }
}

TEST_F(ConfigurationTest, EveryFlagKeepsBitsOrIsRefused) {
  for (const auto& [flag, c] : Cases()) {
    std::string label = "--" + flag;
    for (const std::string& argument : c.flags) label += " " + argument;
    switch (c.outcome) {
      case Outcome::kSameBits:
      case Outcome::kOtherId:
        ExpectSameBits(c, label);
        break;
      case Outcome::kRefusesStart:
        ExpectRefusesStart(c, label);
        break;
      case Outcome::kRefusesRequest:
        ExpectRefusesRequest(c, label);
        break;
      case Outcome::kNoInfluence:
        break;
    }
  }
}

// PORTABLE means every instruction set; the test above would accept another id.
TEST_F(ConfigurationTest, PortableHasOneIdForEveryInstructionSet) {
  for (const char* isa : {"scalar", "avx2", "avx512"}) {
    ServerProcess server(WithModel({std::string("--cpu-isa=") + isa}));
    if (!server.ready()) continue;
    EXPECT_EQ(Policies(Info(server))[v1::DETERMINISM_PORTABLE].numerics_id(),
              ids_[v1::DETERMINISM_PORTABLE])
        << isa;
  }
}

TEST_F(ConfigurationTest, AServerMayAllowOnePolicyOnly) {
  ServerProcess server(
      WithModel({"--determinism-policies=portable", "--default-determinism=portable"}));
  ASSERT_TRUE(server.ready()) << server.log();
  for (const v1::Determinism refused : {v1::DETERMINISM_THROUGHPUT, v1::DETERMINISM_PINNED}) {
    const grpc::Status status = Ask(server, {Requests(refused)[0]})[0].status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_THAT(status.error_message(), HasSubstr("--determinism-policies are portable"));
  }
  // A request that does not say gets the default.
  const Answer answer = Ask(server, {Requests(v1::DETERMINISM_UNSPECIFIED)[0]})[0];
  EXPECT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_TRUE(answer == answers_[0][v1::DETERMINISM_PORTABLE][0]);
}

}  // namespace
}  // namespace verbatim::end_to_end
