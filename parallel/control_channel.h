// Sockets between rank 0 and every other rank: announcements, reports, and news of failures.
//
// A message-passing library tells nobody that a rank has died; the end of its socket does. Frames
// are a kind (uint32), a length (uint64) and bytes, in the machine's byte order. A thread on every
// rank reads them, so that a failure is known at once, also to a rank that computes or waits for
// its device.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "parallel/failure.h"

namespace verbatim::parallel {

class ControlChannel;

// Rank 0's listening socket.
class ControlListener {
 public:
  // Listens on a free TCP port of every interface.
  static absl::StatusOr<std::unique_ptr<ControlListener>> Open();
  ~ControlListener();

  // What the other ranks need to connect: two secrets, one for each side to know the other by, the
  // port, and this host's IPv4 addresses.
  const std::string& contact() const { return contact_; }
  // Takes one connection from each of the other ranks; connections without the secret are dropped.
  // DEADLINE_EXCEEDED names the ranks that have not come.
  absl::StatusOr<std::unique_ptr<ControlChannel>> Accept(int size, absl::Duration timeout);

 private:
  ControlListener() = default;

  int fd_ = -1;
  std::string secret_, welcome_, contact_;
};

// The calls are those of Communicator, with its promises.
class ControlChannel {
 public:
  // Of ranks other than 0. Tries the addresses in turn: on other machines some of them are
  // nobody's, or somebody else's.
  static absl::StatusOr<std::unique_ptr<ControlChannel>> Connect(const std::string& contact,
                                                                 int rank, int size,
                                                                 absl::Duration timeout);
  // Without Close before it, the others take this rank for failed.
  ~ControlChannel();

  int rank() const { return rank_; }
  int size() const { return size_; }
  absl::Status Announce(const std::string& bytes);
  absl::StatusOr<std::string> NextAnnouncement();
  absl::Status Report(const std::string& bytes);
  absl::StatusOr<std::vector<std::string>> TakeReports();
  void Close();
  void Abort(const absl::Status& why);
  absl::Status failure() const { return failure_.status(); }
  bool failed() const { return failure_.failed(); }
  void OnFailure(std::function<void(const absl::Status&)> callback) {
    failure_.OnFailure(std::move(callback));
  }

 private:
  friend class ControlListener;
  enum class Kind : uint32_t { kAnnouncement = 1, kReport, kFailure, kClose };
  struct Peer {
    int fd = -1;
    std::string name;  // "rank 1 (process 4711 on host a)"
    std::string buffer;
    std::deque<std::string> inbox;  // under mu_
    bool ended = false;             // the reading thread's
  };

  ControlChannel(int rank, int size) : rank_(rank), size_(size) {}
  void StartReading();
  void Read();
  // Everything that has arrived; UNAVAILABLE at the end of the connection.
  absl::Status ReadPeer(Peer& peer);
  void TakeFrame(Peer& peer, Kind kind, std::string bytes);
  void Lose(const absl::Status& why);
  // UNAVAILABLE, by the errno of the connection or 0 for its orderly end.
  static absl::Status Lost(const Peer& peer, int error);
  absl::Status Send(const Peer& peer, Kind kind, const std::string& bytes);
  // Keeps the failure, wakes whoever waits, and tells the other ranks if this one is 0.
  void Fail(const absl::Status& status);

  const int rank_, size_;
  std::vector<Peer> peers_;  // rank 0: ranks 1 …; others: rank 0
  Failure failure_;
  std::mutex send_mu_;
  std::mutex mu_;
  std::condition_variable arrived_;
  bool closed_ = false;
  int wake_fds_[2] = {-1, -1};  // a pipe that ends the reading thread
  std::thread reader_;
};

}  // namespace verbatim::parallel
