// Takes all calls that have something to send, and pumps each once.
#include "server/write_thread.h"

#include <utility>

#include "server/generate_call.h"

namespace verbatim::server {

WriteThread::WriteThread() : thread_([this] { Loop(); }) {}

WriteThread::~WriteThread() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void WriteThread::Add(std::shared_ptr<GenerateCall> call) {
  bool was_empty;
  {
    std::lock_guard lock(mutex_);
    was_empty = calls_.empty();
    calls_.push_back(std::move(call));
  }
  if (was_empty) wake_.notify_one();
}

void WriteThread::Loop() {
  std::vector<std::shared_ptr<GenerateCall>> taken;
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || !calls_.empty(); });
    if (calls_.empty()) return;
    taken.swap(calls_);
    lock.unlock();
    for (const std::shared_ptr<GenerateCall>& call : taken) call->Pump();
    taken.clear();
    lock.lock();
  }
}

}  // namespace verbatim::server
