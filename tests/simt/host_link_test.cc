// The link between emulated devices: what is recorded of it, and the rules of NCCL's that it holds
// recordings to.
#include "simt/host_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "parallel/thread_communicator.h"

namespace verbatim::parallel {
namespace {

namespace runtime = kernels::cuda::runtime;
using testing::HasSubstr;

// A rank with memory for a message in each direction.
struct Rank {
  explicit Rank(Communicator& communicator) : host(communicator), link(communicator) { Renew(); }
  ~Rank() {
    for (runtime::Graph* graph : graphs) runtime::DestroyGraph(graph);
    runtime::Free(memory);
  }
  void Renew() {
    void* old = memory;
    memory = static_cast<float*>(*runtime::Allocate(64));
    if (old != nullptr) runtime::Free(old);
    memory[0] = 10.0f + static_cast<float>(host.rank());
  }
  // The other rank's memory[0] comes to memory[1].
  absl::Status Exchange() {
    const int peer = 1 - host.rank();
    return link.Exchange({{peer, memory, 1}}, {{peer, memory + 1, 1}});
  }
  void Record(const std::function<absl::Status()>& work) {
    ASSERT_TRUE(runtime::BeginRecording(nullptr).ok());
    EXPECT_TRUE(work().ok());
    graphs.push_back(*runtime::EndRecording(nullptr));
  }
  void Replay(size_t graph) { EXPECT_TRUE(runtime::LaunchGraph(graphs[graph], nullptr).ok()); }

  Communicator& host;
  HostLink link;
  float* memory = nullptr;
  std::vector<runtime::Graph*> graphs;
};

class HostLinkTest : public testing::Test {
 protected:
  // On a thread for each rank.
  void Run(const std::function<void(Rank&)>& first, const std::function<void(Rank&)>& second) {
    std::thread other([&] { second(*ranks_[1]); });
    first(*ranks_[0]);
    other.join();
  }
  void Run(const std::function<void(Rank&)>& both) { Run(both, both); }
  std::string Failure() { return std::string(ranks_[0]->host.failure().message()); }

  std::vector<std::unique_ptr<Communicator>> hosts_ = MakeThreadCommunicators(2);
  std::unique_ptr<Rank> ranks_[2] = {std::make_unique<Rank>(*hosts_[0]),
                                     std::make_unique<Rank>(*hosts_[1])};
};

TEST_F(HostLinkTest, ReplaysCarryWhatLiesThereThen) {
  Run([](Rank& rank) {
    rank.Record([&] {
      absl::Status status = rank.Exchange();
      status.Update(rank.link.AllReduceSum(rank.memory + 2, 1));
      return status;
    });
    for (int i = 1; i < 3; ++i) {
      rank.memory[0] = static_cast<float>(100 * i + rank.host.rank());
      rank.memory[2] = static_cast<float>(i);
      rank.Replay(0);
      EXPECT_EQ(rank.memory[1], static_cast<float>(100 * i + 1 - rank.host.rank()));
      EXPECT_EQ(rank.memory[2], static_cast<float>(2 * i));
    }
    EXPECT_TRUE(rank.Exchange().ok());  // and beside them
  });
  EXPECT_EQ(Failure(), "");
}

TEST_F(HostLinkTest, WhatOneRankHasRecordedTheOtherHas) {
  Run(
      [](Rank& rank) {
        rank.Record([&] { return rank.Exchange(); });
        rank.Replay(0);
      },
      [](Rank& rank) { rank.Exchange().IgnoreError(); });
  EXPECT_THAT(Failure(), HasSubstr("recorded at place 1 of recording 1"));
  EXPECT_THAT(Failure(), HasSubstr("not recorded"));
}

TEST_F(HostLinkTest, RanksReplayTheSameRecording) {
  const auto record = [](Rank& rank) {
    for (int i = 0; i < 2; ++i) rank.Record([&] { return rank.Exchange(); });
  };
  Run([&](Rank& rank) { record(rank), rank.Replay(0); },
      [&](Rank& rank) { record(rank), rank.Replay(1); });
  EXPECT_THAT(Failure(), HasSubstr("of recording 1"));
  EXPECT_THAT(Failure(), HasSubstr("of recording 2"));
}

TEST_F(HostLinkTest, MemoryOfRecordedMessagesStays) {
  Run([](Rank& rank) {
    rank.Record([&] { return rank.Exchange(); });
    if (rank.host.rank() == 1) rank.Renew();
    rank.Replay(0);
  });
  EXPECT_THAT(Failure(), HasSubstr("memory of a recorded message is not there any more"));
}

TEST_F(HostLinkTest, AReplayWithARankThatIsGoneEnds) {
  Run([](Rank& rank) { rank.Record([&] { return rank.Exchange(); }); });
  hosts_[1]->Abort(absl::InternalError("out of order"));
  ranks_[0]->Replay(0);
  EXPECT_THAT(Failure(), HasSubstr("out of order"));
}

TEST_F(HostLinkTest, RecordingsGoBeforeTheLink) {
  Rank& rank = *ranks_[0];
  rank.Record([&] { return rank.Exchange(); });
  EXPECT_DEATH(rank.link.Release(), "ends before recordings of its messages do");
  runtime::DestroyGraph(rank.graphs[0]);
  rank.graphs.clear();
  rank.link.Release();
}

}  // namespace
}  // namespace verbatim::parallel
