// Sockets between ranks: order of what is said, orderly ends, and failures that nobody misses.
#include "parallel/control_channel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>
#include <vector>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace verbatim::parallel {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::unique_ptr<ControlChannel>> ConnectAll(int size) {
  auto listener = ControlListener::Open();
  EXPECT_TRUE(listener.ok()) << listener.status();
  std::vector<std::unique_ptr<ControlChannel>> channels(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int r = size - 1; r >= 1; --r) {
    threads.emplace_back([&, r] {
      auto channel = ControlChannel::Connect((*listener)->contact(), r, size, absl::Seconds(30));
      EXPECT_TRUE(channel.ok()) << channel.status();
      channels[r] = *std::move(channel);
    });
  }
  auto accepted = (*listener)->Accept(size, absl::Seconds(30));
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(accepted.ok()) << accepted.status();
  channels[0] = *std::move(accepted);
  return channels;
}

TEST(ControlChannelTest, AnnouncementsArriveInOrderAndReportsByRank) {
  auto ranks = ConnectAll(3);
  const std::string large(3 << 20, 'x');
  ASSERT_TRUE(ranks[0]->Announce("one").ok());
  ASSERT_TRUE(ranks[0]->Announce(large).ok());
  ASSERT_TRUE(ranks[0]->Announce("").ok());
  for (int r : {2, 1}) {
    EXPECT_EQ(ranks[r]->NextAnnouncement().value(), "one");
    EXPECT_EQ(ranks[r]->NextAnnouncement().value(), large);
    EXPECT_EQ(ranks[r]->NextAnnouncement().value(), "");
    ASSERT_TRUE(ranks[r]->Report("report of " + std::to_string(r)).ok());
  }
  EXPECT_THAT(ranks[0]->TakeReports().value(), ElementsAre("report of 1", "report of 2"));
  ranks[0]->Close();
  for (int r : {1, 2}) {
    EXPECT_EQ(ranks[r]->NextAnnouncement().status().code(), absl::StatusCode::kOutOfRange);
    ranks[r].reset();
  }
  EXPECT_TRUE(ranks[0]->failure().ok()) << ranks[0]->failure();
}

TEST(ControlChannelTest, AnnouncementsBeforeTheEndAreHeard) {
  auto ranks = ConnectAll(2);
  ASSERT_TRUE(ranks[0]->Announce("last").ok());
  ranks[0]->Close();
  ranks[0].reset();
  EXPECT_EQ(ranks[1]->NextAnnouncement().value(), "last");
  EXPECT_EQ(ranks[1]->NextAnnouncement().status().code(), absl::StatusCode::kOutOfRange);
}

TEST(ControlChannelTest, ARankThatGoesIsNamedToEverybody) {
  auto ranks = ConnectAll(4);
  std::promise<absl::Status> called;
  ranks[0]->OnFailure([&](const absl::Status& status) { called.set_value(status); });
  std::future<absl::Status> waiting =
      std::async(std::launch::async, [&] { return ranks[3]->NextAnnouncement().status(); });
  ranks[2].reset();
  const absl::Status failure = called.get_future().get();
  EXPECT_EQ(failure.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(failure.message()), HasSubstr("rank 2 (process "));
  EXPECT_EQ(waiting.get(), failure);
  EXPECT_EQ(ranks[1]->NextAnnouncement().status(), failure);
  EXPECT_EQ(ranks[0]->Announce("more"), failure);
  EXPECT_EQ(ranks[0]->TakeReports().status(), failure);
  EXPECT_EQ(ranks[1]->Report("more"), failure);
  // Whoever asks late is told at once.
  bool late = false;
  ranks[3]->OnFailure([&](const absl::Status& status) { late = status == failure; });
  EXPECT_TRUE(late);
}

TEST(ControlChannelTest, ARankSaysWhyItFails) {
  auto ranks = ConnectAll(3);
  ranks[1]->Abort(absl::ResourceExhaustedError("no memory for layer 7"));
  EXPECT_THAT(std::string(ranks[2]->NextAnnouncement().status().message()),
              testing::AllOf(HasSubstr("rank 1 ("), HasSubstr("no memory for layer 7")));
  EXPECT_THAT(std::string(ranks[0]->TakeReports().status().message()),
              HasSubstr("no memory for layer 7"));
}

TEST(ControlChannelTest, RankZeroSaysWhyItFails) {
  auto ranks = ConnectAll(2);
  ranks[0]->Abort(absl::InternalError("the port is taken"));
  EXPECT_THAT(std::string(ranks[1]->NextAnnouncement().status().message()),
              HasSubstr("the port is taken"));
}

TEST(ControlChannelTest, StrangersAreDropped) {
  auto listener = ControlListener::Open();
  ASSERT_TRUE(listener.ok());
  std::string contact = (*listener)->contact();
  contact[0] = contact[0] == 'a' ? 'b' : 'a';
  auto stranger = std::async(std::launch::async, [&] {
    return ControlChannel::Connect(contact, 1, 2, absl::Seconds(30)).status();
  });
  auto accepted = (*listener)->Accept(2, absl::Milliseconds(200));
  listener->reset();  // whoever has not been heard by now is not
  EXPECT_EQ(stranger.get().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(accepted.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(accepted.status().message()), HasSubstr("rank 1 has not connected"));
}

// An address of rank 0's host that is another host's from here, where something else answers.
TEST(ControlChannelTest, AddressesWhereSomebodyElseAnswersArePassedOver) {
  auto somebody = ControlListener::Open(), listener = ControlListener::Open();
  ASSERT_TRUE(somebody.ok() && listener.ok());
  // Secrets and addresses of the one, the port of the other.
  std::vector<std::string> wrong = absl::StrSplit((*listener)->contact(), ' ');
  wrong[2] = std::vector<std::string>(absl::StrSplit((*somebody)->contact(), ' '))[2];
  auto misled = std::async(std::launch::async, [&] {
    return ControlChannel::Connect(absl::StrJoin(wrong, " "), 1, 2, absl::Seconds(30)).status();
  });
  EXPECT_FALSE((*somebody)->Accept(2, absl::Milliseconds(200)).ok());
  somebody->reset();
  EXPECT_EQ(misled.get().code(), absl::StatusCode::kUnavailable);
  // An address that refuses, then one that is right.
  wrong = absl::StrSplit((*listener)->contact(), ' ');
  wrong.insert(wrong.begin() + 3, "nowhere");
  auto found = std::async(std::launch::async, [&] {
    return ControlChannel::Connect(absl::StrJoin(wrong, " "), 1, 2, absl::Seconds(30));
  });
  auto accepted = (*listener)->Accept(2, absl::Seconds(30));
  ASSERT_TRUE(accepted.ok()) << accepted.status();
  const auto connected = found.get();
  ASSERT_TRUE(connected.ok()) << connected.status();
  ASSERT_TRUE((*accepted)->Announce("here").ok());
  EXPECT_EQ((*connected)->NextAnnouncement().value(), "here");
  (*accepted)->Close();
}

}  // namespace
}  // namespace verbatim::parallel
