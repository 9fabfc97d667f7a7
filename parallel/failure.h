// The first failure among the ranks, kept for whoever asks.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <utility>

#include "absl/status/status.h"

namespace verbatim::parallel {

class Failure {
 public:
  // Without a lock: for loops that poll.
  bool failed() const { return failed_.load(std::memory_order_acquire); }

  absl::Status status() const {
    std::lock_guard lock(mu_);
    return status_;
  }

  // The first one stays; false for later ones.
  bool Set(const absl::Status& status) {
    std::lock_guard lock(mu_);
    if (!status_.ok()) return false;
    status_ = status;
    failed_.store(true, std::memory_order_release);
    if (const auto callback = std::exchange(callback_, nullptr)) callback(status);
    return true;
  }

  // In the place of the callback before. Callbacks run under the lock, so that none runs any more
  // once another has taken its place; they must not call this object.
  void OnFailure(std::function<void(const absl::Status&)> callback) {
    std::lock_guard lock(mu_);
    if (status_.ok()) {
      callback_ = std::move(callback);
    } else if (callback) {
      callback(status_);
    }
  }

 private:
  mutable std::mutex mu_;
  absl::Status status_;
  std::function<void(const absl::Status&)> callback_;
  std::atomic<bool> failed_{false};
};

}  // namespace verbatim::parallel
