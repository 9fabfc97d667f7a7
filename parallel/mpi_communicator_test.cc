// Run by mpirun with two and four ranks: blocks, sums and announcements over MPI, then the death of
// a rank while the others exchange with it, or wait for its report or announcement.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/numerics/reduction_tree.h"
#include "parallel/partial_sums.h"
#include "parallel/ranks.h"

namespace verbatim::parallel {
namespace {

#define REQUIRE(condition)                                                                    \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      std::fprintf(stderr, "%s:%d: rank %d: not true: %s\n", __FILE__, __LINE__, self.rank(), \
                   #condition);                                                               \
      return 1;                                                                               \
    }                                                                                         \
  } while (false)

float Value(int rank, int64_t i) {
  const uint32_t bits = (static_cast<uint32_t>(i) * 2654435761u + rank * 40503u) >> 8;
  return static_cast<float>(bits) / 16777216.0f - 0.5f;
}

int TestBlocks(Communicator& self) {
  // Rank 0 gathers columns, as it gathers logits.
  constexpr int64_t kRows = 3, kCols = 1000;
  const int64_t stride = kCols * self.size();
  std::vector<float> whole(kRows * stride, -1.0f), mine(kRows * kCols);
  for (int64_t i = 0; i < kRows * kCols; ++i) mine[i] = Value(self.rank(), i);
  std::vector<Block> sends, receives;
  if (self.rank() == 0) {
    for (int r = 1; r < self.size(); ++r) {
      receives.push_back({.peer = r,
                          .data = whole.data() + r * kCols,
                          .rows = kRows,
                          .cols = kCols,
                          .stride = stride});
    }
  } else {
    sends.push_back(
        {.peer = 0, .data = mine.data(), .rows = kRows, .cols = kCols, .stride = kCols});
  }
  REQUIRE(self.Exchange(sends, receives).ok());
  for (int64_t row = 0; self.rank() == 0 && row < kRows; ++row) {
    for (int64_t i = 0; i < stride; ++i) {
      const int r = static_cast<int>(i / kCols);
      REQUIRE(whole[row * stride + i] == (r == 0 ? -1.0f : Value(r, row * kCols + i % kCols)));
    }
  }
  return 0;
}

int TestJoins(Communicator& self) {
  auto backend = *kernels::cpu::CpuBackend::Create({.threads = 1});
  auto sums = *PartialSums::Create(*backend, self, 3 * kSlicedCount);
  for (const int64_t count : {int64_t{576}, 3 * kSlicedCount}) {
    for (int round = 0; round < 20; ++round) {
      std::vector<float> partial(count);
      for (int64_t i = 0; i < count; ++i) partial[i] = Value(self.rank(), i + round);
      REQUIRE(sums->Join({.policy = kernels::Policy::kPinned}, partial.data(), count, nullptr,
                         partial.data(), false)
                  .ok());
      for (int64_t i = 0; i < count; ++i) {
        std::vector<float> parts;
        for (int r = 0; r < self.size(); ++r) parts.push_back(Value(r, i + round));
        REQUIRE(partial[i] == numerics::TreeSum(parts.data(), self.size()));
      }
    }
  }
  std::vector<float> data(1000, static_cast<float>(self.rank() + 1));
  REQUIRE(self.AllReduceSum(data.data(), 1000).ok());
  float sum = 0;
  for (int r = 0; r < self.size(); ++r) sum += static_cast<float>(r + 1);
  for (float x : data) REQUIRE(x == sum);
  return 0;
}

int TestAnnouncements(Communicator& self) {
  if (self.rank() == 0) {
    REQUIRE(self.Announce("work").ok());
    const auto reports = self.TakeReports();
    REQUIRE(reports.ok() && static_cast<int>(reports->size()) == self.size() - 1);
    REQUIRE(reports->back() == "done " + std::to_string(self.size() - 1));
  } else {
    REQUIRE(self.NextAnnouncement().value_or("") == "work");
    REQUIRE(self.Report("done " + std::to_string(self.rank())).ok());
  }
  return 0;
}

// `how`: "exchange", "report" or "announcement", which the survivors wait for.
int TestDeath(Communicator& self, const std::string& how) {
  const int dead = how == "announcement" ? 0 : self.size() - 1;
  // Not before rank 0 has taken the reports of the test before: what arrived with a failure is
  // lost.
  if (self.rank() == 0 && dead != 0) REQUIRE(self.Announce("die").ok());
  if (self.rank() == dead) {
    if (dead != 0) REQUIRE(self.NextAnnouncement().value_or("") == "die");
    kill(getpid(), SIGKILL);
    pause();
  }
  absl::Status status;
  if (how == "exchange") {
    float x = 0;
    const Block block = {.peer = dead, .data = &x, .cols = 1};
    status = self.Exchange({}, {block});
  } else {
    const auto wait = [&] {
      return self.rank() == 0 ? self.TakeReports().status() : self.NextAnnouncement().status();
    };
    status = wait();
    if (status.ok()) status = wait();  // after "die"
  }
  REQUIRE(absl::IsUnavailable(status));
  // Rank 0's socket has no other name.
  const std::string expected = "rank " + std::to_string(dead) + (dead == 0 ? " has" : " (process ");
  REQUIRE(std::string(status.message()).find(expected) != std::string::npos);
  std::printf("survivors know: %s\n", std::string(status.message()).c_str());
  return 0;
}

int Run(const std::string& how) {
  const auto launched = FindLaunchedRank();
  if (!launched.has_value()) {
    std::fprintf(stderr, "this test is started by mpirun\n");
    return 1;
  }
  if (JoinRanks(launched->size + 1).status().code() != absl::StatusCode::kFailedPrecondition) {
    std::fprintf(stderr, "joined more ranks than there are\n");
    return 1;
  }
  auto joined = JoinRanks(launched->size);
  if (!joined.ok()) {
    std::fprintf(stderr, "%s\n", joined.status().ToString().c_str());
    return 1;
  }
  Communicator& self = **joined;
  int failed = TestBlocks(self);
  if (failed == 0) failed = TestJoins(self);
  if (failed == 0) failed = TestAnnouncements(self);
  if (failed == 0 && !how.empty()) failed = TestDeath(self, how);
  if (failed == 0 && how.empty()) {
    if (self.rank() == 0) {
      self.Close();
    } else if (self.NextAnnouncement().status().code() != absl::StatusCode::kOutOfRange) {
      return 1;
    }
    if (self.rank() == 0) std::printf("all ranks agree\n");
  }
  return failed;
}

}  // namespace
}  // namespace verbatim::parallel

int main(int argc, char** argv) { return verbatim::parallel::Run(argc > 1 ? argv[1] : ""); }
