// What ends the link between devices, and who hears of it.
#include "parallel/device_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/forwarding_backend.h"
#include "parallel/thread_communicator.h"

namespace verbatim::parallel {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// What was called, in order, and what the link answers.
struct Events {
  std::mutex mu;
  std::condition_variable changed;
  std::vector<std::string> log;
  absl::Status health, exchange;

  void Add(const std::string& event) {
    std::lock_guard lock(mu);
    log.push_back(event);
    changed.notify_all();
  }
  std::vector<std::string> Log() {
    std::lock_guard lock(mu);
    return log;
  }
  void WaitFor(const std::string& event) {
    std::unique_lock lock(mu);
    changed.wait(lock, [&] { return std::count(log.begin(), log.end(), event) > 0; });
  }
};

class FakeLink final : public DeviceLink {
 public:
  explicit FakeLink(Events& events) : events_(events) {}

  absl::Status Exchange(absl::Span<const Message> sends,
                        absl::Span<const Message> receives) override {
    events_.Add("exchange of " + std::to_string(sends.size()) + " and " +
                std::to_string(receives.size()));
    std::lock_guard lock(events_.mu);
    return events_.exchange;
  }
  absl::Status AllReduceSum(float*, int64_t) override { return absl::OkStatus(); }
  absl::Status Check() override {
    std::lock_guard lock(events_.mu);
    return events_.health;
  }
  void Abort() override { events_.Add("abort"); }
  void Release() override { events_.Add("release"); }

 private:
  Events& events_;
};

class NotingBackend final : public kernels::ForwardingBackend {
 public:
  explicit NotingBackend(Events& events)
      : kernels::ForwardingBackend(*kernels::cpu::CpuBackend::Create({.threads = 1})),
        events_(events) {}

  absl::Status Synchronize() override {
    events_.Add("synchronize");
    return absl::OkStatus();
  }
  void ForgetDecode() override { events_.Add("forget"); }

 private:
  Events& events_;
};

class DeviceCommunicatorTest : public testing::Test {
 protected:
  Events events_;
  NotingBackend backend_{events_};
  std::vector<std::unique_ptr<Communicator>> hosts_ = MakeThreadCommunicators(2);
  std::unique_ptr<Communicator> device_ =
      MakeDeviceCommunicator(*hosts_[0], backend_, std::make_unique<FakeLink>(events_));
};

TEST(RowsOfTest, RowsTravelOneByOne) {
  float data[100];
  const Block whole = {.peer = 2, .data = data, .cols = 30};
  const Block strided = {.peer = 1, .data = data + 5, .rows = 3, .cols = 4, .stride = 20};
  const Block empty = {.peer = 1, .data = data, .rows = 3, .cols = 0, .stride = 20};
  EXPECT_THAT(RowsOf({whole, strided, empty}),
              ElementsAre(Message{2, data, 30}, Message{1, data + 5, 4}, Message{1, data + 25, 4},
                          Message{1, data + 45, 4}));
}

TEST_F(DeviceCommunicatorTest, ARankThatFailsEndsTheLinkBeforeAnybodyHears) {
  std::promise<absl::Status> told;
  device_->OnFailure([&](const absl::Status& status) {
    events_.Add("told");
    told.set_value(status);
  });
  hosts_[1]->Abort(absl::InternalError("out of sockets"));
  const absl::Status failure = told.get_future().get();
  EXPECT_EQ(failure.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(failure.message()), HasSubstr("out of sockets"));
  EXPECT_THAT(events_.Log(), ElementsAre("abort", "told"));
  EXPECT_EQ(device_->Exchange({}, {}), failure);
  EXPECT_EQ(device_->AllReduceSum(nullptr, 0), failure);
  EXPECT_THAT(events_.Log(), ElementsAre("abort", "told"));  // nothing more was asked of it
}

TEST_F(DeviceCommunicatorTest, ALinkThatFailsByItselfFailsEveryRank) {
  {
    std::lock_guard lock(events_.mu);
    events_.health = absl::InternalError("a cable is out");
  }
  EXPECT_THAT(std::string(hosts_[1]->NextAnnouncement().status().message()),
              HasSubstr("rank 0 has failed: a cable is out"));
  events_.WaitFor("abort");
}

TEST_F(DeviceCommunicatorTest, AnExchangeThatFailsFailsEveryRank) {
  events_.exchange = absl::InvalidArgumentError("no such peer");
  float x = 0;
  const Block block = {.peer = 1, .data = &x, .cols = 1};
  const absl::Status status = device_->Exchange({block}, {block, block});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no such peer"));
  EXPECT_EQ(hosts_[1]->NextAnnouncement().status(), status);
  events_.WaitFor("abort");
  EXPECT_EQ(events_.Log().front(), "exchange of 1 and 2");
}

TEST_F(DeviceCommunicatorTest, ALinkThatARankHasEndedIsNotTheReason) {
  hosts_[1]->Abort(absl::InternalError("the reason"));
  events_.WaitFor("abort");
  events_.exchange = absl::CancelledError("the link has ended");
  EXPECT_THAT(std::string(device_->Exchange({}, {}).message()), HasSubstr("the reason"));
}

TEST_F(DeviceCommunicatorTest, AnOrderlyEndWaitsForWhatIsOnTheWay) {
  device_->Close();
  EXPECT_EQ(hosts_[1]->NextAnnouncement().status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(events_.Log(), ElementsAre("synchronize", "abort", "forget", "release"));
  device_.reset();
  EXPECT_THAT(events_.Log(), ElementsAre("synchronize", "abort", "forget", "release"));
  EXPECT_TRUE(hosts_[0]->failure().ok());
}

TEST_F(DeviceCommunicatorTest, AnEndAfterAFailureWaitsForNothing) {
  hosts_[1]->Abort(absl::InternalError("gone"));
  events_.WaitFor("abort");
  // Recorded steps go once the link ends what runs of them, and before what is left of it.
  device_->Close();
  EXPECT_THAT(events_.Log(), ElementsAre("abort", "abort", "forget", "release"));
}

// As when what comes between the device and the engine is refused.
TEST_F(DeviceCommunicatorTest, AnEndWithoutACloseLeavesTheBackendAlone) {
  device_.reset();
  EXPECT_THAT(events_.Log(), ElementsAre("abort", "release"));
}

// A link that carries nothing, and says that it did.
TEST_F(DeviceCommunicatorTest, ALinkThatCarriesNothingIsFoundOut) {
  const absl::Status tried = TryExchanges(*device_, backend_);
  EXPECT_EQ(tried.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(std::string(tried.message()), "rank 1 sent 1, -1 arrived");
}

TEST(TryExchangesTest, ALinkThatWorksPasses) {
  auto ranks = MakeThreadCommunicators(4);
  std::vector<std::future<absl::Status>> tried;
  for (auto& rank : ranks) {
    tried.push_back(std::async(std::launch::async, [&rank] {
      const auto backend = *kernels::cpu::CpuBackend::Create({.threads = 1});
      return TryExchanges(*rank, *backend);
    }));
  }
  for (auto& status : tried) EXPECT_TRUE(status.get().ok());
  ranks[0]->Close();
}

}  // namespace
}  // namespace verbatim::parallel
