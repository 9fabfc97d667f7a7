// The server's process on a GPU, here the emulated one: its answers, and how it ends when the
// device cannot be used or fails while it serves.
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/end_to_end/server_process.h"

namespace verbatim::end_to_end {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::vector<std::string> Flags(std::vector<std::string> more) {
  std::vector<std::string> flags = {"--model=tests/fixtures/reference/gguf_llama_q4_1.gguf",
                                    "--max-model-len=256", "--kv-cache-dtype=float32",
                                    "--max-num-seqs=4", "--max-num-batched-tokens=32"};
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

class GpuServerTest : public testing::Test {
 protected:
  void TearDown() override { unsetenv("VERBATIM_SIMT_FAULT"); }
  static void Plant(const char* fault) { setenv("VERBATIM_SIMT_FAULT", fault, 1); }
};

struct Answer {
  grpc::Status status;
  v1::Finished finished;
};

Answer Ask(const ServerProcess& server, int64_t max_tokens) {
  v1::GenerateRequest request;
  request.set_text("once upon a time");
  request.set_determinism(v1::DETERMINISM_PORTABLE);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, request);
  Answer answer;
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
    if (message.has_finished()) answer.finished = message.finished();
  }
  answer.status = reader->Finish();
  return answer;
}

TEST_F(GpuServerTest, AnswersWithTheCpusBitsAndSaysWhatItRunsOn) {
  ServerProcess gpu(Flags({"--device=cuda"})), cpu(Flags({"--kv-cache-bytes=16MiB"}));
  ASSERT_TRUE(gpu.ready() && cpu.ready()) << gpu.log();
  const Answer got = Ask(gpu, 6), expected = Ask(cpu, 6);
  ASSERT_TRUE(got.status.ok() && expected.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.finished.logits_sha256(), expected.finished.logits_sha256());
  EXPECT_FALSE(got.finished.logits_sha256().empty());
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(gpu.stub().GetServerInfo(&context, {}, &info).ok());
  EXPECT_THAT(info.backend(), HasSubstr("cuda emulator"));
  EXPECT_THAT(info.backend(), HasSubstr("kernels emulated"));
  EXPECT_EQ(info.configuration().at("device"), "cuda");
  EXPECT_EQ(info.configuration().at("gpu-memory-utilization"), "0.9");
  EXPECT_EQ(info.policies_size(), 3);
  for (const v1::PolicyInfo& policy : info.policies()) EXPECT_TRUE(policy.honoured());
  gpu.Signal(SIGTERM);
  EXPECT_EQ(gpu.Wait(), 0) << gpu.log();
}

TEST_F(GpuServerTest, ADeviceThatCannotBeUsedEndsTheStart) {
  const std::pair<const char*, const char*> cases[] = {
      {"none", "--device cuda: cuda: no device 0; this machine has 0"},
      {"allocation=3", "--device cuda: cuda: cannot allocate"},
      {"allocation=40", "cuda: cannot allocate"},
      {"device=5", "cuda: an illegal address"},
      {"device=20", "cuda: an illegal address"},
  };
  for (const auto& [fault, message] : cases) {
    Plant(fault);
    ServerProcess server(Flags({"--device=cuda"}));
    ASSERT_FALSE(server.ready()) << fault;
    EXPECT_EQ(server.Wait(), 1) << fault;
    EXPECT_THAT(server.log(), HasSubstr(message)) << fault;
    EXPECT_THAT(server.log(), Not(HasSubstr("ready on")));
  }
}

TEST_F(GpuServerTest, ADeviceThatFailsWhileServingEndsRequestsAndProcess) {
  Plant("device=2000");
  ServerProcess server(Flags({"--device=cuda"}));
  ASSERT_TRUE(server.ready()) << server.log();
  HealthWatch health(server.channel());
  EXPECT_EQ(health.Next(), 1);
  const Answer answer = Ask(server, 200);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(),
              HasSubstr("the server's device has failed: cuda: an illegal address"));
  EXPECT_EQ(health.Next(), 2);                  // NOT_SERVING
  EXPECT_EQ(server.Wait(), 1) << server.log();  // by itself
  EXPECT_THAT(server.log(), HasSubstr("the server's device has failed"));
}

}  // namespace
}  // namespace verbatim::end_to_end
