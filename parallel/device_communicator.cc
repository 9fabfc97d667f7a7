// Ranks that exchange memory of their devices.
#include "parallel/device_communicator.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "parallel/failure.h"

namespace verbatim::parallel {
namespace {

// How often the link is asked whether it is well.
constexpr std::chrono::milliseconds kCheckInterval(100);

class DeviceCommunicator final : public Communicator {
 public:
  DeviceCommunicator(Communicator& host, kernels::Backend& backend,
                     std::unique_ptr<DeviceLink> link)
      : host_(host), backend_(backend), link_(std::move(link)) {
    host_.OnFailure([this](const absl::Status&) {
      std::lock_guard lock(mu_);
      host_failed_ = true;
      wake_.notify_all();
    });
    watcher_ = std::thread([this] { Watch(); });
  }
  // Not closed: the backend may be gone, and with it what it had recorded.
  ~DeviceCommunicator() override {
    EndLink([] {});
  }

  int rank() const override { return host_.rank(); }
  int size() const override { return host_.size(); }
  absl::Status Announce(const std::string& bytes) override { return host_.Announce(bytes); }
  absl::StatusOr<std::string> NextAnnouncement() override { return host_.NextAnnouncement(); }
  absl::Status Report(const std::string& bytes) override { return host_.Report(bytes); }
  absl::StatusOr<std::vector<std::string>> TakeReports() override { return host_.TakeReports(); }
  void Abort(const absl::Status& why) override { host_.Abort(why); }
  absl::Status failure() const override { return host_.failure(); }
  bool on_stream() const override { return true; }
  void OnFailure(std::function<void(const absl::Status&)> callback) override {
    failure_.OnFailure(std::move(callback));
  }

  absl::Status Exchange(absl::Span<const Block> sends, absl::Span<const Block> receives) override {
    if (absl::Status failed = failure(); !failed.ok()) return failed;
    return EndedBy(link_->Exchange(RowsOf(sends), RowsOf(receives)));
  }

  absl::Status AllReduceSum(float* data, int64_t count) override {
    if (absl::Status failed = failure(); !failed.ok()) return failed;
    return EndedBy(link_->AllReduceSum(data, count));
  }

  void Close() override {
    {
      std::lock_guard lock(mu_);
      if (std::exchange(closed_, true)) return;
    }
    // What other ranks still need of this one's stream must have left it; as long as that takes,
    // failures are noticed.
    if (failure().ok()) backend_.Synchronize().IgnoreError();
    host_.Close();
    EndLink([this] { backend_.ForgetDecode(); });
  }

 private:
  // A link that fails because a rank has failed is not the reason.
  absl::Status EndedBy(const absl::Status& status) {
    if (status.ok()) return status;
    if (failure().ok()) host_.Abort(status);
    return failure();
  }

  void Watch() {
    std::unique_lock lock(mu_);
    while (!stopping_ && !host_failed_) {
      wake_.wait_for(lock, kCheckInterval, [this] { return stopping_ || host_failed_; });
      if (stopping_ || host_failed_) break;
      lock.unlock();
      if (const absl::Status status = link_->Check(); !status.ok()) host_.Abort(status);
      lock.lock();
    }
    if (stopping_) return;
    lock.unlock();
    link_->Abort();
    failure_.Set(host_.failure());
  }

  // `forget` drops recorded exchanges, which the link's release would wait for.
  void EndLink(absl::FunctionRef<void()> forget) {
    if (!watcher_.joinable()) return;
    host_.OnFailure(nullptr);
    {
      std::lock_guard lock(mu_);
      stopping_ = true;
      wake_.notify_all();
    }
    watcher_.join();
    // Nothing waits for other ranks any more: what runs of the recordings comes to its end.
    link_->Abort();
    forget();
    link_->Release();
  }

  Communicator& host_;
  kernels::Backend& backend_;
  const std::unique_ptr<DeviceLink> link_;
  Failure failure_;  // set once the link is aborted: who hears of it can wait for the device
  std::mutex mu_;
  std::condition_variable wake_;
  bool host_failed_ = false, stopping_ = false, closed_ = false;
  std::thread watcher_;
};

}  // namespace

std::vector<Message> RowsOf(absl::Span<const Block> blocks) {
  std::vector<Message> messages;
  for (const Block& block : blocks) {
    for (int64_t row = 0; row < block.rows && block.cols > 0; ++row) {
      messages.push_back({block.peer, block.data + row * block.stride, block.cols});
    }
  }
  return messages;
}

absl::Status TryExchanges(Communicator& communicator, kernels::Backend& backend) {
  const int self = communicator.rank(), size = communicator.size();
  // A number from every rank, then what this one says and sums.
  std::vector<float> host(static_cast<size_t>(size) + 2, -1.0f);
  host[size] = host[size + 1] = static_cast<float>(self);
  auto buffer = backend.Allocate(host.size() * sizeof(float));
  if (!buffer.ok()) return buffer.status();
  float* const device = static_cast<float*>((*buffer)->data());
  absl::Status status = backend.CopyToDevice(device, host.data(), host.size() * sizeof(float));
  if (!status.ok()) return status;
  std::vector<Block> sends, receives;
  for (int r = 0; r < size; ++r) {
    if (r == self) continue;
    sends.push_back({.peer = r, .data = device + size, .cols = 1});
    receives.push_back({.peer = r, .data = device + r, .cols = 1});
  }
  status = communicator.Exchange(sends, receives);
  if (status.ok()) status = communicator.AllReduceSum(device + size + 1, 1);
  // A failure ends the wait.
  if (status.ok()) status = backend.CopyToHost(host.data(), device, host.size() * sizeof(float));
  if (status.ok()) status = communicator.failure();
  if (!status.ok()) return status;
  for (int r = 0; r < size; ++r) {
    if (r != self && host[r] != static_cast<float>(r)) {
      return absl::InternalError(absl::StrCat("rank ", r, " sent ", r, ", ", host[r], " arrived"));
    }
  }
  float sum = 0;
  for (int r = 0; r < size; ++r) sum += static_cast<float>(r);
  if (host[size + 1] == sum) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("the sum of ", size, " ranks' numbers is ", sum, ", not ", host[size + 1]));
}

std::unique_ptr<Communicator> MakeDeviceCommunicator(Communicator& host, kernels::Backend& backend,
                                                     std::unique_ptr<DeviceLink> link) {
  return std::make_unique<DeviceCommunicator>(host, backend, std::move(link));
}

}  // namespace verbatim::parallel
