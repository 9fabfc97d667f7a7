// Ranks as threads: blocks arrive where they belong, and failures end every wait.
#include "parallel/thread_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <string>
#include <thread>

namespace verbatim::parallel {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

void OnEveryRank(int size, const std::function<void(Communicator&)>& body) {
  auto ranks = MakeThreadCommunicators(size);
  std::vector<std::thread> threads;
  for (auto& rank : ranks) threads.emplace_back([&] { body(*rank); });
  for (std::thread& thread : threads) thread.join();
  ranks[0]->Close();
}

TEST(ThreadCommunicatorTest, BlocksGoToTheirPeersWithTheirStrides) {
  OnEveryRank(4, [](Communicator& self) {
    for (int round = 0; round < 20; ++round) {
      // Every rank sends every other two rows of three out of rows of five.
      std::vector<float> sent(10), received(4 * 12, -1.0f);
      for (size_t i = 0; i < sent.size(); ++i) sent[i] = 100.0f * self.rank() + round + 0.01f * i;
      std::vector<Block> sends, receives;
      for (int r = 0; r < 4; ++r) {
        if (r == self.rank()) continue;
        sends.push_back({.peer = r, .data = sent.data(), .rows = 2, .cols = 3, .stride = 5});
        receives.push_back(
            {.peer = r, .data = received.data() + 12 * r, .rows = 2, .cols = 3, .stride = 6});
      }
      ASSERT_TRUE(self.Exchange(sends, receives).ok());
      for (int r = 0; r < 4; ++r) {
        for (int row = 0; row < 2; ++row) {
          for (int col = 0; col < 6; ++col) {
            const bool theirs = r != self.rank() && col < 3;
            const float value = 100.0f * r + round + 0.01f * static_cast<float>(5 * row + col);
            EXPECT_EQ(received[12 * r + 6 * row + col], theirs ? value : -1.0f);
          }
        }
      }
    }
  });
}

TEST(ThreadCommunicatorTest, SumsAreTheSameOnEveryRank) {
  OnEveryRank(3, [](Communicator& self) {
    for (int round = 0; round < 50; ++round) {
      std::vector<float> data(17, static_cast<float>(self.rank() + round));
      ASSERT_TRUE(self.AllReduceSum(data.data(), 17).ok());
      EXPECT_THAT(data, Each(3.0f * round + 3.0f));
    }
  });
}

TEST(ThreadCommunicatorTest, AnnouncementsAndReports) {
  OnEveryRank(3, [](Communicator& self) {
    if (self.rank() == 0) {
      EXPECT_TRUE(self.Announce("go").ok());
      EXPECT_THAT(self.TakeReports().value(), ElementsAre("1 went", "2 went"));
    } else {
      EXPECT_EQ(self.NextAnnouncement().value(), "go");
      EXPECT_TRUE(self.Report(std::to_string(self.rank()) + " went").ok());
    }
  });
}

TEST(ThreadCommunicatorTest, AFailureEndsEveryWait) {
  auto ranks = MakeThreadCommunicators(4);
  float x = 1;
  const Block from_three[] = {{.peer = 3, .data = &x, .cols = 1}};
  auto exchange =
      std::async(std::launch::async, [&] { return ranks[0]->Exchange({}, from_three); });
  auto sum = std::async(std::launch::async, [&] {
    float y = 1;
    return ranks[1]->AllReduceSum(&y, 1);
  });
  auto heard =
      std::async(std::launch::async, [&] { return ranks[2]->NextAnnouncement().status(); });
  ranks[3]->Abort(absl::InternalError("broken"));
  for (auto* waiting : {&exchange, &sum, &heard}) {
    const absl::Status status = waiting->get();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 3 has failed: broken"));
  }
}

TEST(ThreadCommunicatorTest, ARankThatGoesIsMissed) {
  auto ranks = MakeThreadCommunicators(2);
  ranks[1].reset();
  EXPECT_THAT(std::string(ranks[0]->TakeReports().status().message()),
              HasSubstr("rank 1 has ended"));
}

TEST(ThreadCommunicatorTest, BlocksOfOtherShapesAreRefused) {
  auto ranks = MakeThreadCommunicators(2);
  float x[2] = {};
  const Block two[] = {{.peer = 1, .data = x, .cols = 2}};
  const Block one[] = {{.peer = 0, .data = x, .cols = 1}};
  auto sender = std::async(std::launch::async, [&] { return ranks[0]->Exchange(two, {}); });
  EXPECT_THAT(std::string(ranks[1]->Exchange({}, one).message()), HasSubstr("1 x 2, not 1 x 1"));
  EXPECT_FALSE(sender.get().ok());
}

}  // namespace
}  // namespace verbatim::parallel
