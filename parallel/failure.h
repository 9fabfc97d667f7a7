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

  // The first one stays; false for later ones. Calls back without holding a lock.
  bool Set(const absl::Status& status) {
    std::function<void(const absl::Status&)> callback;
    {
      std::lock_guard lock(mu_);
      if (!status_.ok()) return false;
      status_ = status;
      callback = std::exchange(callback_, nullptr);
      failed_.store(true, std::memory_order_release);
    }
    if (callback) callback(status);
    return true;
  }

  void OnFailure(std::function<void(const absl::Status&)> callback) {
    absl::Status status;
    {
      std::lock_guard lock(mu_);
      status = status_;
      if (status.ok()) callback_ = std::move(callback);
    }
    if (!status.ok() && callback) callback(status);
  }

 private:
  mutable std::mutex mu_;
  absl::Status status_;
  std::function<void(const absl::Status&)> callback_;
  std::atomic<bool> failed_{false};
};

}  // namespace verbatim::parallel
