// The server's process on a GPU, here the emulated one: its answers, and how it ends when the
// device cannot be used or fails while it serves.
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
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
  void TearDown() override {
    unsetenv("VERBATIM_SIMT_FAULT");
    unsetenv("VERBATIM_SIMT_DEVICES");
  }
  static void Plant(const char* fault) { setenv("VERBATIM_SIMT_FAULT", fault, 1); }
};

Answer Ask(const ServerProcess& server, int64_t max_tokens) {
  v1::GenerateRequest request;
  request.set_text("once upon a time");
  request.set_determinism(v1::DETERMINISM_PORTABLE);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return server.Ask(request);
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

// Exit status of `verbatim replay` on the GPU; *out gets what it printed.
int Replay(const std::string& trace, std::string* out) {
  const std::string path =
      std::filesystem::temp_directory_path() / ("gpu-trace-" + std::to_string(getpid()));
  std::ofstream(path, std::ios::binary) << trace;
  const std::string command =
      std::string(VERBATIM_BINARY) +
      " replay --device cuda --model tests/fixtures/reference/gguf_llama_q4_1.gguf " + path +
      " 2>&1";
  std::FILE* pipe = popen(command.c_str(), "r");
  char buffer[4096];
  out->clear();
  while (const size_t size = std::fread(buffer, 1, sizeof(buffer), pipe)) out->append(buffer, size);
  const int status = pclose(pipe);
  std::filesystem::remove(path);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// Throughput's products follow the batch: a trace says how, and repeats where the library is the
// same.
TEST_F(GpuServerTest, ThroughputNamesItsLibraryAndIsReplayed) {
  ServerProcess server(Flags({"--device=cuda", "--allow-traces"}));
  ASSERT_TRUE(server.ready()) << server.log();
  EXPECT_THAT(server.log(), HasSubstr("throughput products by reference-1"));
  struct Stream {
    grpc::ClientContext call;
    std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
  };
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 4; ++i) {
    v1::GenerateRequest request;
    request.set_text("one two three four five six seven eight nine " + std::to_string(i));
    request.set_determinism(v1::DETERMINISM_THROUGHPUT);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_sampling()->set_ignore_eos(true);
    request.mutable_sampling()->set_max_tokens(4 + 2 * i);
    request.set_trace(v1::TRACE_LEVEL_DECISIONS);
    streams.push_back(std::make_unique<Stream>());
    streams.back()->reader = server.stub().Generate(&streams.back()->call, request);
  }
  for (size_t i = 0; i < streams.size(); ++i) {
    v1::GenerateResponse message;
    v1::Finished finished;
    while (streams[i]->reader->Read(&message)) {
      if (message.has_finished()) finished = message.finished();
    }
    ASSERT_TRUE(streams[i]->reader->Finish().ok());
    if (i != 1) continue;
    ASSERT_EQ(finished.trace().not_replayable(), "");
    const std::string trace = finished.trace().json();
    EXPECT_THAT(trace, HasSubstr("\"reference splitk "));
    std::string out;
    EXPECT_EQ(Replay(trace, &out), 0) << out;
    EXPECT_THAT(out, HasSubstr("reproduced: all 6 logit rows"));
    // Another decision, and a machine without the library, are told apart before anything runs.
    std::string other = trace;
    other.replace(other.find("splitk "), 8, "splitk 9");
    EXPECT_EQ(Replay(other, &out), 1);
    EXPECT_THAT(out, HasSubstr("this program qkv on reference splitk"));
    Plant("no library");
    EXPECT_EQ(Replay(trace, &out), 1);
    EXPECT_THAT(out, HasSubstr("throughput products by pinned kernels (no reference library)"));
  }
}

#ifdef VERBATIM_MPIEXEC

std::vector<std::string> Launcher(const std::string& ranks) {
  return {
      VERBATIM_MPIEXEC, "--oversubscribe", "--allow-run-as-root", "--bind-to", "none", "-n", ranks};
}

// A model whose heads two ranks can share.
std::vector<std::string> RankFlags(std::vector<std::string> more) {
  more.insert(more.begin(), "--model=tests/fixtures/reference/gguf_qwen3_q8_0.gguf");
  std::vector<std::string> flags = Flags(more);
  flags.erase(flags.begin());
  return flags;
}

TEST_F(GpuServerTest, TwoRanksOnTwoGpusAnswerWithTheCpusBits) {
  setenv("VERBATIM_SIMT_DEVICES", "2", 1);
  ServerProcess gpus(RankFlags({"--device=cuda", "--tensor-parallel-size=2"}), Launcher("2"));
  ServerProcess cpu(RankFlags({"--kv-cache-bytes=16MiB"}));
  ASSERT_TRUE(gpus.ready() && cpu.ready()) << gpus.log();
  const Answer got = Ask(gpus, 6), expected = Ask(cpu, 6);
  ASSERT_TRUE(got.status.ok() && expected.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.finished.logits_sha256(), expected.finished.logits_sha256());
  EXPECT_FALSE(got.finished.logits_sha256().empty());
  gpus.Signal(SIGUSR2);
  EXPECT_EQ(gpus.Wait(), 0) << gpus.log();
}

TEST_F(GpuServerTest, ADeviceOfAnotherRankThatFailsEndsRequestsAndProcesses) {
  setenv("VERBATIM_SIMT_DEVICES", "2", 1);
  const std::vector<std::string> flags = RankFlags({"--device=cuda", "--tensor-parallel-size=2"});
  std::vector<std::string> launcher = Launcher("1");
  launcher.insert(launcher.end(), {VERBATIM_BINARY, "serve", "--port=0"});
  launcher.insert(launcher.end(), flags.begin(), flags.end());
  launcher.insert(launcher.end(), {":", "-n", "1", "-x", "VERBATIM_SIMT_FAULT=device=2000"});
  ServerProcess server(flags, launcher);
  ASSERT_TRUE(server.ready()) << server.log();
  const Answer answer = Ask(server, 200);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.status.error_message(), HasSubstr("rank 1 (process"));
  EXPECT_THAT(answer.status.error_message(), HasSubstr("an illegal address"));
  EXPECT_NE(server.Wait(), 0);  // by itself
}

// Rank 0's device is in the middle of a graph, or soon is.
TEST_F(GpuServerTest, ARankThatDiesWhileStepsAreReplayedEndsRequestsAndProcesses) {
  setenv("VERBATIM_SIMT_DEVICES", "2", 1);
  std::vector<std::string> launcher = Launcher("2");
  launcher.push_back("--enable-recovery");  // leaves rank 0 the time to end by itself
  ServerProcess server(RankFlags({"--device=cuda", "--tensor-parallel-size=2"}), launcher);
  ASSERT_TRUE(server.ready()) << server.log();
  v1::GenerateRequest request;
  request.set_text("once upon a time");
  request.set_determinism(v1::DETERMINISM_PINNED);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_max_tokens(230);
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, request);
  v1::GenerateResponse message;
  bool begun = false;
  while (!begun && reader->Read(&message)) begun = message.has_delta();
  ASSERT_TRUE(begun);
  const pid_t rank = ProcessOfRank(server.pid(), 1);
  ASSERT_GT(rank, 0);
  kill(rank, SIGKILL);
  while (reader->Read(&message)) EXPECT_FALSE(message.has_finished());
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("rank 1 (process " + std::to_string(rank)));
  server.Wait();
  EXPECT_THAT(server.log(), HasSubstr("has ended unexpectedly"));
}

TEST_F(GpuServerTest, EveryRankNeedsAGpuOfItsOwn) {
  const std::pair<const char*, const char*> cases[] = {
      {"--device=cuda", "--device cuda:1: cuda: no device 1; this machine has 1"},
      {"--device=cuda:0", "--device: cuda:0 is one GPU for all ranks; cuda gives each its own"},
  };
  for (const auto& [device, message] : cases) {
    ServerProcess server(RankFlags({device, "--tensor-parallel-size=2"}), Launcher("2"));
    EXPECT_FALSE(server.ready());
    EXPECT_NE(server.Wait(), 0);
    EXPECT_THAT(server.log(), HasSubstr(message));
  }
}

#endif  // VERBATIM_MPIEXEC

}  // namespace
}  // namespace verbatim::end_to_end
