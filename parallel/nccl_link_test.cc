// The link over functions in NCCL's place: what is put on the stream, waiting that can be ended,
// and errors.
#include "parallel/nccl_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace verbatim::parallel {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// What stands in NCCL's place. Its functions are plain ones, so there is one of it.
struct Fake {
  std::vector<std::string> calls;
  std::atomic<int> polls_in_progress{0};  // polls that find something still going on
  std::atomic<int> polls{0};
  ncclResult_t background = ncclSuccess;  // what they find afterwards
  ncclResult_t send = ncclSuccess;
  bool in_progress = false;  // what calls answer
  std::atomic<int> aborts{0};
  // Graphs with what was put on the stream: an abort ends only when there are none any more.
  std::atomic<int> graphs{0};
  std::atomic<bool> device_told_to_stop{false};
  bool hang = false;  // the end of a group waits for that
  std::atomic<bool> hangs{false};

  ncclResult_t Answer() const { return in_progress ? ncclInProgress : ncclSuccess; }
};
Fake* fake = nullptr;

const ncclComm_t kComm = reinterpret_cast<ncclComm_t>(&fake);
const cudaStream_t kStream = reinterpret_cast<cudaStream_t>(&fake + 1);

NcclFunctions Functions() {
  NcclFunctions f;
  f.get_unique_id = [](ncclUniqueId* id) {
    id->internal[0] = 'x';
    return ncclSuccess;
  };
  f.get_error_string = [](ncclResult_t) { return "an error"; };
  f.get_last_error = [](ncclComm_t) { return "a detail"; };
  f.comm_init = [](ncclComm_t* comm, int size, ncclUniqueId id, int rank, ncclConfig_t* config) {
    fake->calls.push_back(absl::StrCat("init ", rank, " of ", size, " by ",
                                       std::string(1, id.internal[0]),
                                       config->blocking == 0 ? "" : ", blocking"));
    *comm = kComm;
    return fake->Answer();
  };
  f.comm_get_async_error = [](ncclComm_t comm, ncclResult_t* result) {
    EXPECT_EQ(comm, kComm);
    ++fake->polls;
    *result = fake->polls_in_progress-- > 0 ? ncclInProgress : fake->background;
    return ncclSuccess;
  };
  f.comm_abort = [](ncclComm_t comm) {
    EXPECT_EQ(comm, kComm);
    fake->device_told_to_stop = true;
    while (fake->graphs > 0) std::this_thread::yield();
    ++fake->aborts;
    return ncclSuccess;
  };
  f.group_start = [] {
    fake->calls.push_back("group");
    return ncclSuccess;
  };
  f.group_end = [] {
    fake->calls.push_back("end");
    if (fake->hang) fake->hangs = true;
    while (fake->hang && !fake->device_told_to_stop) std::this_thread::yield();
    return fake->Answer();
  };
  f.send = [](const void*, size_t count, ncclDataType_t type, int peer, ncclComm_t,
              cudaStream_t stream) {
    EXPECT_EQ(stream, kStream);
    EXPECT_EQ(type, ncclFloat32);
    fake->calls.push_back(absl::StrCat("send ", count, " to ", peer));
    return fake->send;
  };
  f.recv = [](void*, size_t count, ncclDataType_t type, int peer, ncclComm_t, cudaStream_t stream) {
    EXPECT_EQ(stream, kStream);
    EXPECT_EQ(type, ncclFloat32);
    fake->calls.push_back(absl::StrCat("receive ", count, " from ", peer));
    return fake->Answer();
  };
  f.all_reduce = [](const void* from, void* to, size_t count, ncclDataType_t, ncclRedOp_t op,
                    ncclComm_t, cudaStream_t) {
    EXPECT_EQ(from, to);
    EXPECT_EQ(op, ncclSum);
    fake->calls.push_back(absl::StrCat("sum ", count));
    return fake->Answer();
  };
  return f;
}

class NcclLinkTest : public testing::Test {
 protected:
  NcclLinkTest() { fake = &fake_; }
  absl::StatusOr<std::unique_ptr<NcclLink>> Connect(const std::function<absl::Status()>& failure =
                                                        [] { return absl::OkStatus(); }) {
    return NcclLink::Connect(Functions(), *MakeNcclId(Functions()), 1, 4, kStream, failure);
  }
  Fake fake_;
};

TEST_F(NcclLinkTest, AnExchangeIsOneGroup) {
  auto link = Connect();
  ASSERT_TRUE(link.ok()) << link.status();
  float data[8];
  EXPECT_TRUE((*link)->Exchange({{2, data, 3}, {3, data, 4}}, {{0, data, 5}}).ok());
  EXPECT_TRUE((*link)->Exchange({}, {}).ok());
  EXPECT_TRUE((*link)->AllReduceSum(data, 8).ok());
  EXPECT_TRUE((*link)->AllReduceSum(data, 0).ok());
  EXPECT_THAT(fake_.calls, ElementsAre("init 1 of 4 by x", "group", "receive 5 from 0",
                                       "send 3 to 2", "send 4 to 3", "end", "sum 8"));
  link->reset();
  EXPECT_EQ(fake_.aborts, 1);
}

TEST_F(NcclLinkTest, WhatGoesOnInTheBackgroundIsWaitedFor) {
  fake_.in_progress = true;
  fake_.polls_in_progress = 3;
  auto link = Connect();
  ASSERT_TRUE(link.ok()) << link.status();
  EXPECT_EQ(fake_.polls, 4);
  float x = 0;
  for (int call = 0; call < 2; ++call) {
    fake_.polls_in_progress = 5;
    fake_.polls = 0;
    EXPECT_TRUE(
        (call == 0 ? (*link)->Exchange({{0, &x, 1}}, {}) : (*link)->AllReduceSum(&x, 1)).ok());
    EXPECT_EQ(fake_.polls, 6);
  }
  // Not an error of the link's.
  fake_.polls_in_progress = 1;
  EXPECT_TRUE((*link)->Check().ok());
}

TEST_F(NcclLinkTest, ErrorsSayWhereAndWhat) {
  fake_.in_progress = true;
  auto link = Connect();
  ASSERT_TRUE(link.ok()) << link.status();
  fake_.background = ncclRemoteError;
  fake_.polls_in_progress = 2;
  float x = 0;
  EXPECT_EQ(std::string((*link)->Exchange({{0, &x, 1}}, {}).message()),
            "NCCL: an exchange: an error (a detail)");
  EXPECT_EQ(std::string((*link)->Check().message()),
            "NCCL: in the background: an error (a detail)");
  // One message of a group: the group is ended all the same.
  fake_.in_progress = false;
  fake_.send = ncclInvalidArgument;
  fake_.calls.clear();
  EXPECT_FALSE((*link)->Exchange({{9, &x, 1}}, {}).ok());
  EXPECT_EQ(fake_.calls.back(), "end");
}

TEST_F(NcclLinkTest, NobodyWaitsForRanksThatDoNotCome) {
  fake_.in_progress = true;
  fake_.polls_in_progress = 1 << 30;
  int asked = 0;
  const auto link = Connect([&asked] {
    return ++asked < 3 ? absl::OkStatus() : absl::UnavailableError("rank 2 has ended");
  });
  EXPECT_EQ(link.status(), absl::UnavailableError("rank 2 has ended"));
  EXPECT_EQ(fake_.aborts, 1);
}

TEST_F(NcclLinkTest, AbortEndsWhoeverWaits) {
  auto link = Connect();
  ASSERT_TRUE(link.ok()) << link.status();
  fake_.in_progress = true;
  fake_.polls_in_progress = 1 << 30;
  float x = 0;
  std::future<absl::Status> waiting = std::async(std::launch::async, [&] {
    return (*link)->Exchange({}, {{0, &x, 1}});
  });
  while (fake_.polls < 3) continue;
  (*link)->Abort();
  EXPECT_THAT(std::string(waiting.get().message()), HasSubstr("has been ended"));
  fake_.calls.clear();
  EXPECT_FALSE((*link)->Exchange({{0, &x, 1}}, {}).ok());
  EXPECT_FALSE((*link)->AllReduceSum(&x, 1).ok());
  EXPECT_TRUE((*link)->Check().ok());
  EXPECT_THAT(fake_.calls, IsEmpty());
  (*link)->Abort();
  link->reset();
  EXPECT_EQ(fake_.aborts, 1);
}

// A replay waits for a rank that is gone; whoever replays can destroy the graphs only once that has
// ended, and hears of it only when Abort returns.
TEST_F(NcclLinkTest, AbortEndsAGraphThatRunsAndWaitsForNone) {
  auto link = Connect();
  ASSERT_TRUE(link.ok()) << link.status();
  float x = 0;
  EXPECT_TRUE((*link)->Exchange({{0, &x, 1}}, {}).ok());
  fake_.graphs = 2;
  std::future<void> replay = std::async(std::launch::async, [this] {
    while (!fake_.device_told_to_stop) std::this_thread::yield();
  });
  (*link)->Abort();
  EXPECT_EQ(fake_.aborts, 0);
  replay.get();  // ends
  // Nothing more reaches the communicator while it waits.
  fake_.calls.clear();
  fake_.polls = 0;
  EXPECT_FALSE((*link)->Exchange({{0, &x, 1}}, {}).ok());
  EXPECT_TRUE((*link)->Check().ok());
  EXPECT_THAT(fake_.calls, IsEmpty());
  EXPECT_EQ(fake_.polls, 0);
  (*link)->Abort();
  fake_.graphs = 0;
  (*link)->Release();
  EXPECT_EQ(fake_.aborts, 1);
  (*link)->Release();
  link->reset();
  EXPECT_EQ(fake_.aborts, 1);
}

// As where a call puts more on the stream than fits while the stream waits for a rank that is gone.
TEST_F(NcclLinkTest, AbortEndsACallThatHangs) {
  auto link = Connect();
  ASSERT_TRUE(link.ok()) << link.status();
  fake_.hang = true;
  float x = 0;
  std::future<absl::Status> hanging = std::async(std::launch::async, [&] {
    return (*link)->Exchange({{0, &x, 1}}, {});
  });
  while (!fake_.hangs) std::this_thread::yield();
  EXPECT_TRUE((*link)->Check().ok());
  (*link)->Abort();
  EXPECT_THAT(std::string(hanging.get().message()), HasSubstr("has been ended"));
  (*link)->Release();
  EXPECT_EQ(fake_.aborts, 1);
}

// As of a device that has failed.
TEST_F(NcclLinkTest, GraphsThatNeverGoAreNotWaitedForForEver) {
  auto link = Connect();
  ASSERT_TRUE(link.ok()) << link.status();
  (*link)->set_release_limit(std::chrono::milliseconds(1));
  fake_.graphs = 1;
  link->reset();
  EXPECT_EQ(fake_.aborts, 0);
  fake_.graphs = 0;
  while (fake_.aborts == 0) std::this_thread::yield();
}

}  // namespace
}  // namespace verbatim::parallel
