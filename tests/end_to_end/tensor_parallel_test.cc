// A server of several processes under mpirun: the bits of one process, orderly ends, and what
// clients hear when a rank dies.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <string>
#include <vector>

#include "tests/end_to_end/server_process.h"

namespace verbatim::end_to_end {
namespace {

using ::testing::HasSubstr;

std::vector<std::string> Launcher(int ranks) {
  return {VERBATIM_MPIEXEC,     "--oversubscribe", "--allow-run-as-root", "--bind-to", "none", "-n",
          std::to_string(ranks)};
}

std::vector<std::string> Flags(std::vector<std::string> more = {}) {
  std::vector<std::string> flags = {"--model=tests/fixtures/reference/gguf_qwen3_q8_0.gguf",
                                    "--kv-cache-bytes=16MiB", "--max-model-len=1024",
                                    "--threads=1"};
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

v1::GenerateRequest Request(v1::Determinism determinism, int64_t max_tokens) {
  v1::GenerateRequest request;
  request.set_text("once upon a time there were two ranks");
  request.set_determinism(determinism);
  request.mutable_sampling()->set_temperature(0.7);
  request.mutable_sampling()->set_seed(11);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

Answer Ask(const ServerProcess& server, v1::Determinism determinism, int64_t max_tokens) {
  return server.Ask(Request(determinism, max_tokens));
}

TEST(TensorParallelServerTest, TwoRanksAnswerWithTheBitsOfOne) {
  ServerProcess one(Flags()), two(Flags({"--tensor-parallel-size=2"}), Launcher(2));
  ASSERT_TRUE(one.ready()) << one.log();
  ASSERT_TRUE(two.ready()) << two.log();
  for (v1::Determinism determinism : {v1::DETERMINISM_PINNED, v1::DETERMINISM_PORTABLE}) {
    const Answer expected = Ask(one, determinism, 40), got = Ask(two, determinism, 40);
    ASSERT_TRUE(expected.status.ok()) << expected.status.error_message();
    ASSERT_TRUE(got.status.ok()) << got.status.error_message();
    EXPECT_FALSE(got.finished.logits_sha256().empty());
    EXPECT_EQ(got.finished.logits_sha256(), expected.finished.logits_sha256());
  }
  // Plain sums: other bits, but an answer.
  EXPECT_TRUE(Ask(two, v1::DETERMINISM_THROUGHPUT, 40).status.ok());
  const auto numerics_ids = [](const ServerProcess& server) {
    grpc::ClientContext context;
    v1::GetServerInfoResponse info;
    EXPECT_TRUE(server.stub().GetServerInfo(&context, {}, &info).ok());
    std::vector<std::string> ids;
    for (const v1::PolicyInfo& policy : info.policies()) ids.push_back(policy.numerics_id());
    return ids;
  };
  EXPECT_EQ(numerics_ids(two), numerics_ids(one));
  // What mpirun passes on to its ranks.
  two.Signal(SIGUSR2);
  EXPECT_EQ(two.Wait(), 0) << two.log();
  EXPECT_THAT(two.log(), HasSubstr("stopped"));
}

TEST(TensorParallelServerTest, RankZeroDrainsWhenItIsToldTo) {
  ServerProcess server(Flags({"--tensor-parallel-size=2"}), Launcher(2));
  ASSERT_TRUE(server.ready()) << server.log();
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, Request(v1::DETERMINISM_PORTABLE, 300));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  kill(ProcessOfRank(server.pid(), 0), SIGTERM);
  bool finished = false;
  while (reader->Read(&message)) finished = finished || message.has_finished();
  EXPECT_TRUE(finished);
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(server.Wait(), 0) << server.log();
}

TEST(TensorParallelServerTest, ARankThatDiesEndsRequestsAndServer) {
  ServerProcess server(Flags({"--tensor-parallel-size=2"}), Launcher(2));
  ASSERT_TRUE(server.ready()) << server.log();
  const pid_t rank = ProcessOfRank(server.pid(), 1);
  ASSERT_GT(rank, 0);
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, Request(v1::DETERMINISM_PORTABLE, 900));
  v1::GenerateResponse message;
  bool begun = false;
  while (!begun && reader->Read(&message)) begun = message.has_delta();
  ASSERT_TRUE(begun);
  kill(rank, SIGKILL);
  while (reader->Read(&message)) EXPECT_FALSE(message.has_finished());
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("rank 1 (process " + std::to_string(rank)));
  EXPECT_NE(server.Wait(), 0);  // by itself
  EXPECT_THAT(server.log(), HasSubstr("has ended unexpectedly"));
}

TEST(TensorParallelServerTest, ARankThatDiesEndsAnIdleServer) {
  ServerProcess server(Flags({"--tensor-parallel-size=2"}), Launcher(2));
  ASSERT_TRUE(server.ready()) << server.log();
  kill(ProcessOfRank(server.pid(), 1), SIGKILL);
  EXPECT_NE(server.Wait(), 0);
  EXPECT_THAT(server.log(), HasSubstr("rank 1 (process"));
}

TEST(TensorParallelServerTest, TheOthersEndWhenRankZeroDies) {
  ServerProcess usual(Flags({"--tensor-parallel-size=2"}), Launcher(2));
  ASSERT_TRUE(usual.ready()) << usual.log();
  kill(ProcessOfRank(usual.pid(), 0), SIGKILL);
  EXPECT_NE(usual.Wait(), 0);
  // With this flag mpirun leaves the other ranks alone and has no opinion: they end by themselves.
  std::vector<std::string> launcher = Launcher(2);
  launcher.push_back("--enable-recovery");
  ServerProcess server(Flags({"--tensor-parallel-size=2"}), launcher);
  ASSERT_TRUE(server.ready()) << server.log();
  grpc::ClientContext context;
  auto reader = server.stub().Generate(&context, Request(v1::DETERMINISM_PORTABLE, 900));
  v1::GenerateResponse message;
  ASSERT_TRUE(reader->Read(&message));
  kill(ProcessOfRank(server.pid(), 0), SIGKILL);
  while (reader->Read(&message)) continue;
  EXPECT_FALSE(reader->Finish().ok());
  server.Wait();
  EXPECT_THAT(server.log(), HasSubstr("rank 0 has ended unexpectedly"));
}

TEST(TensorParallelServerTest, ARankThatDiesBeforeItJoinsEndsTheStart) {
  std::vector<std::string> launcher = Launcher(1);
  launcher.insert(launcher.end(), {VERBATIM_BINARY, "serve", "--port=0"});
  for (const std::string& flag : Flags({"--tensor-parallel-size=2"})) launcher.push_back(flag);
  launcher.insert(launcher.end(), {":", "-n", "1", "/bin/sh", "-c", "kill -9 $$"});
  ServerProcess server(Flags(), launcher);
  EXPECT_FALSE(server.ready());
  EXPECT_NE(server.Wait(), 0);
}

TEST(TensorParallelServerTest, WhatCannotBeIsRefusedByRankZeroAlone) {
  struct Case {
    std::vector<std::string> flags;
    int ranks;
    const char* message;
  };
  for (const Case& refused : {
           Case{Flags(), 2, "--tensor-parallel-size: 1 does not fit the 2 ranks"},
           Case{Flags({"--tensor-parallel-size=4"}), 2, "4 does not fit the 2 ranks"},
           Case{Flags({"--tensor-parallel-size=3"}), 3, "3 is not a power of two"},
           Case{Flags({"--tensor-parallel-size=4"}), 4,
                "--tensor-parallel-size: 4 ranks cannot share query heads of 192, 2 chunks"},
       }) {
    ServerProcess server(refused.flags, Launcher(refused.ranks));
    EXPECT_FALSE(server.ready());
    EXPECT_NE(server.Wait(), 0);
    EXPECT_THAT(server.log(), HasSubstr(refused.message));
    EXPECT_EQ(server.log().find("verbatim serve:"), server.log().rfind("verbatim serve:"))
        << server.log();
  }
  ServerProcess alone(Flags({"--tensor-parallel-size=2"}));
  EXPECT_FALSE(alone.ready());
  EXPECT_EQ(alone.Wait(), 1);
  EXPECT_THAT(alone.log(), HasSubstr("2 ranks are started by a launcher: mpirun -n 2"));
}

TEST(TensorParallelServerTest, AFollowersFailureToStartIsToldByRankZero) {
  // Ranks that were given different limits are not one server.
  std::vector<std::string> launcher = Launcher(1);
  std::vector<std::string> first = {VERBATIM_BINARY, "serve", "--port=0"};
  for (const std::string& flag : Flags({"--tensor-parallel-size=2"})) first.push_back(flag);
  launcher.insert(launcher.end(), first.begin(), first.end());
  launcher.insert(launcher.end(), {":", "-n", "1"});
  ServerProcess server(Flags({"--tensor-parallel-size=2", "--max-num-seqs=3"}), launcher);
  EXPECT_FALSE(server.ready());
  EXPECT_NE(server.Wait(), 0);
  EXPECT_THAT(server.log(), HasSubstr("rank 1 does not fit rank 0: 'rows of a step 512, 3'"));
}

}  // namespace
}  // namespace verbatim::end_to_end
