// Ranks that are threads of one process.
#include "parallel/thread_communicator.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/failure.h"

namespace verbatim::parallel {
namespace {

// A block that its sender waits to have taken.
struct Posted {
  Block block;
  bool taken = false;
};

// What the ranks share.
struct Hub {
  explicit Hub(int ranks)
      : size(ranks), announcements(ranks), reports(ranks), reduced(ranks), failures(ranks) {}

  const int size;
  std::mutex mu;
  std::condition_variable changed;
  bool closed = false;
  std::vector<std::deque<std::string>> announcements, reports;  // by rank
  std::map<std::pair<int, int>, std::deque<Posted*>> posted;    // by sender and receiver
  // The reduction under way.
  std::vector<std::optional<Block>> reduced;  // by rank
  std::vector<float> sum;
  int read = 0;  // ranks that have read `sum`
  // By rank, because each has its own callback.
  std::vector<Failure> failures;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Hub> hub, int rank) : hub_(std::move(hub)), rank_(rank) {}
  ~ThreadCommunicator() override {
    bool closed;
    {
      std::lock_guard lock(hub_->mu);
      closed = hub_->closed;
    }
    if (!closed) Fail(absl::UnavailableError(absl::StrCat("rank ", rank_, " has ended")));
  }

  int rank() const override { return rank_; }
  int size() const override { return hub_->size; }

  absl::Status Announce(const std::string& bytes) override {
    std::lock_guard lock(hub_->mu);
    if (absl::Status status = failure(); !status.ok()) return status;
    for (int r = 1; r < size(); ++r) hub_->announcements[r].push_back(bytes);
    hub_->changed.notify_all();
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> NextAnnouncement() override {
    std::unique_lock lock(hub_->mu);
    std::deque<std::string>& queue = hub_->announcements[rank_];
    hub_->changed.wait(lock, [&] { return !queue.empty() || hub_->closed || failed(); });
    if (failed()) return failure();
    if (queue.empty()) return absl::OutOfRangeError("rank 0 has closed");
    std::string bytes = std::move(queue.front());
    queue.pop_front();
    return bytes;
  }

  absl::Status Report(const std::string& bytes) override {
    std::lock_guard lock(hub_->mu);
    if (failed()) return failure();
    hub_->reports[rank_].push_back(bytes);
    hub_->changed.notify_all();
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> TakeReports() override {
    std::unique_lock lock(hub_->mu);
    hub_->changed.wait(lock, [&] {
      return failed() || std::all_of(hub_->reports.begin() + 1, hub_->reports.end(),
                                     [](const auto& queue) { return !queue.empty(); });
    });
    if (failed()) return failure();
    std::vector<std::string> out;
    for (int r = 1; r < size(); ++r) {
      out.push_back(std::move(hub_->reports[r].front()));
      hub_->reports[r].pop_front();
    }
    return out;
  }

  absl::Status Exchange(absl::Span<const Block> sends, absl::Span<const Block> receives) override {
    std::vector<Posted> mine(sends.size());
    std::unique_lock lock(hub_->mu);
    for (size_t i = 0; i < sends.size(); ++i) {
      mine[i].block = sends[i];
      hub_->posted[{rank_, sends[i].peer}].push_back(&mine[i]);
    }
    hub_->changed.notify_all();
    for (const Block& block : receives) {
      std::deque<Posted*>& queue = hub_->posted[{block.peer, rank_}];
      hub_->changed.wait(lock, [&] { return !queue.empty() || failed(); });
      if (failed()) break;
      Posted& posted = *queue.front();
      queue.pop_front();
      const Block& from = posted.block;
      if (from.rows != block.rows || from.cols != block.cols) {
        lock.unlock();
        Abort(absl::InternalError(absl::StrCat("rank ", block.peer, " sent a block of ", from.rows,
                                               " x ", from.cols, ", not ", block.rows, " x ",
                                               block.cols)));
        lock.lock();
        break;
      }
      for (int64_t row = 0; row < from.rows; ++row) {
        std::copy_n(from.data + row * from.stride, from.cols, block.data + row * block.stride);
      }
      posted.taken = true;
      hub_->changed.notify_all();
    }
    hub_->changed.wait(lock, [&] {
      return failed() ||
             std::all_of(mine.begin(), mine.end(), [](const Posted& p) { return p.taken; });
    });
    if (!failed()) return absl::OkStatus();
    // Nobody may look at what lies on this thread's stack.
    for (auto& [pair, queue] : hub_->posted) {
      if (pair.first == rank_) queue.clear();
    }
    return failure();
  }

  absl::Status AllReduceSum(float* data, int64_t count) override {
    std::unique_lock lock(hub_->mu);
    // The sum before must have been read by everybody.
    hub_->changed.wait(lock, [&] { return !hub_->reduced[rank_].has_value() || failed(); });
    hub_->reduced[rank_] = Block{.data = data, .cols = count};
    const auto all = [&] {
      return std::all_of(hub_->reduced.begin(), hub_->reduced.end(),
                         [](const auto& block) { return block.has_value(); });
    };
    if (all()) {
      hub_->sum.assign(data, data + count);
      for (int64_t i = 0; i < count; ++i) {
        float sum = hub_->reduced[0]->data[i];
        for (int r = 1; r < size(); ++r) sum += hub_->reduced[r]->data[i];
        hub_->sum[i] = sum;
      }
      hub_->read = 0;
      for (auto& block : hub_->reduced) block->rows = 0;  // computed
      hub_->changed.notify_all();
    }
    hub_->changed.wait(lock, [&] { return hub_->reduced[rank_]->rows == 0 || failed(); });
    if (failed()) return failure();
    std::copy_n(hub_->sum.begin(), count, data);
    if (++hub_->read == size()) {
      for (auto& block : hub_->reduced) block.reset();
      hub_->changed.notify_all();
    }
    return absl::OkStatus();
  }

  void Close() override {
    std::lock_guard lock(hub_->mu);
    hub_->closed = true;
    hub_->changed.notify_all();
  }

  void Abort(const absl::Status& why) override {
    Fail(absl::UnavailableError(
        absl::StrCat("rank ", rank_, " has failed: ", std::string(why.message()))));
  }

  absl::Status failure() const override { return hub_->failures[rank_].status(); }
  void OnFailure(std::function<void(const absl::Status&)> callback) override {
    hub_->failures[rank_].OnFailure(std::move(callback));
  }

 private:
  bool failed() const { return hub_->failures[rank_].failed(); }

  void Fail(const absl::Status& status) {
    for (Failure& failure : hub_->failures) failure.Set(status);
    std::lock_guard lock(hub_->mu);
    hub_->changed.notify_all();
  }

  const std::shared_ptr<Hub> hub_;
  const int rank_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeThreadCommunicators(int size) {
  auto hub = std::make_shared<Hub>(size);
  std::vector<std::unique_ptr<Communicator>> out;
  for (int r = 0; r < size; ++r) out.push_back(std::make_unique<ThreadCommunicator>(hub, r));
  return out;
}

}  // namespace verbatim::parallel
