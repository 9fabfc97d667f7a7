// Sockets between rank 0 and every other rank.
#include "parallel/control_channel.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"

namespace verbatim::parallel {
namespace {

constexpr size_t kSecretBytes = 16;
constexpr size_t kHeaderBytes = 12;
// A stranger at one of rank 0's addresses who takes the connection and says nothing.
constexpr absl::Duration kWelcomeTimeout = absl::Seconds(30);
constexpr uint64_t kMaxFrameBytes = uint64_t{1} << 30;
// A peer that takes no byte for so long is taken for failed.
constexpr timeval kSendTimeout = {.tv_sec = 300, .tv_usec = 0};

absl::Status SocketError(const char* what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", strerror(errno)));
}

// Announcements are small and waited for; a host that has vanished without a word is noticed within
// half a minute.
void Tune(int fd) {
  const auto set = [fd](int level, int name, int value) {
    setsockopt(fd, level, name, &value, sizeof(value));
  };
  set(IPPROTO_TCP, TCP_NODELAY, 1);
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 10);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 30000);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kSendTimeout, sizeof(kSendTimeout));
}

bool WriteAll(int fd, const void* data, size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t sent = send(fd, at, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += sent;
    size -= static_cast<size_t>(sent);
  }
  return true;
}

// Waits for input until the deadline.
bool WaitReadable(int fd, absl::Time deadline) {
  while (true) {
    const int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left_ms <= 0) return false;
    pollfd entry = {.fd = fd, .events = POLLIN, .revents = 0};
    const int ready = poll(&entry, 1, static_cast<int>(std::min<int64_t>(left_ms, 1000)));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

bool ReadExactly(int fd, size_t size, absl::Time deadline, std::string* out) {
  out->resize(size);
  size_t done = 0;
  while (done < size) {
    if (!WaitReadable(fd, deadline)) return false;
    const ssize_t got = recv(fd, out->data() + done, size - done, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    done += static_cast<size_t>(got);
  }
  return true;
}

std::string ProcessName() {
  char host[256] = "";
  gethostname(host, sizeof(host) - 1);
  return absl::StrCat("process ", getpid(), " on ", host);
}

// The others first, because they mean this host everywhere.
std::vector<std::string> HostAddresses() {
  std::vector<std::string> addresses, loopback;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) == 0) {
    for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
      if (entry->ifa_addr == nullptr || (entry->ifa_flags & IFF_UP) == 0) continue;
      if (entry->ifa_addr->sa_family != AF_INET) continue;
      char text[INET_ADDRSTRLEN];
      const auto* ipv4 = reinterpret_cast<const sockaddr_in*>(entry->ifa_addr);
      if (inet_ntop(AF_INET, &ipv4->sin_addr, text, sizeof(text)) == nullptr) continue;
      ((entry->ifa_flags & IFF_LOOPBACK) != 0 ? loopback : addresses).push_back(text);
    }
    freeifaddrs(list);
  }
  addresses.insert(addresses.end(), loopback.begin(), loopback.end());
  return addresses;
}

// A connected socket, or −1.
int ConnectTo(const std::string& address, uint16_t port, absl::Time deadline) {
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  if (inet_pton(AF_INET, address.c_str(), &to.sin_addr) != 1) return -1;
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  if (connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)) != 0 && errno != EINPROGRESS) {
    close(fd);
    return -1;
  }
  pollfd entry = {.fd = fd, .events = POLLOUT, .revents = 0};
  const int64_t left_ms =
      std::clamp<int64_t>(absl::ToInt64Milliseconds(deadline - absl::Now()), 0, 10000);
  int error = 0;
  socklen_t size = sizeof(error);
  if (poll(&entry, 1, static_cast<int>(left_ms)) != 1 ||
      getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) {
    close(fd);
    return -1;
  }
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  return fd;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ControlListener>> ControlListener::Open() {
  auto listener = std::unique_ptr<ControlListener>(new ControlListener());
  listener->fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in any = {};
  any.sin_family = AF_INET;
  any.sin_addr.s_addr = htonl(INADDR_ANY);
  socklen_t size = sizeof(any);
  if (listener->fd_ < 0 ||
      bind(listener->fd_, reinterpret_cast<sockaddr*>(&any), sizeof(any)) != 0 ||
      listen(listener->fd_, 64) != 0 ||
      getsockname(listener->fd_, reinterpret_cast<sockaddr*>(&any), &size) != 0) {
    return SocketError("cannot listen for the other ranks");
  }
  for (std::string* secret : {&listener->secret_, &listener->welcome_}) {
    std::string bytes(kSecretBytes, '\0');
    if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
      return SocketError("cannot draw a secret for the other ranks");
    }
    *secret = absl::BytesToHexString(bytes);
  }
  listener->contact_ = absl::StrCat(listener->secret_, " ", listener->welcome_, " ",
                                    ntohs(any.sin_port), " ", absl::StrJoin(HostAddresses(), " "));
  return listener;
}

ControlListener::~ControlListener() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<std::unique_ptr<ControlChannel>> ControlListener::Accept(int size,
                                                                        absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  auto channel = std::unique_ptr<ControlChannel>(new ControlChannel(0, size));
  channel->peers_.resize(static_cast<size_t>(size - 1));
  int missing = size - 1;
  while (missing > 0) {
    if (!WaitReadable(fd_, deadline)) {
      std::vector<int> absent;
      for (int r = 1; r < size; ++r) {
        if (channel->peers_[r - 1].fd < 0) absent.push_back(r);
      }
      return absl::DeadlineExceededError(
          absl::StrCat("rank ", absl::StrJoin(absent, ", "), " has not connected to rank 0"));
    }
    const int fd = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    // Secret, rank, length of the name; the name.
    std::string hello, name;
    const absl::Time soon = std::min(deadline, absl::Now() + absl::Seconds(5));
    int32_t numbers[2] = {};
    bool known = ReadExactly(fd, secret_.size() + sizeof(numbers), soon, &hello) &&
                 hello.compare(0, secret_.size(), secret_) == 0;
    if (known) {
      memcpy(numbers, hello.data() + secret_.size(), sizeof(numbers));
      known = numbers[0] >= 1 && numbers[0] < size && channel->peers_[numbers[0] - 1].fd < 0 &&
              numbers[1] >= 0 && numbers[1] < 1024 &&
              ReadExactly(fd, static_cast<size_t>(numbers[1]), soon, &name) &&
              WriteAll(fd, welcome_.data(), welcome_.size());
    }
    if (!known) {
      close(fd);
      continue;
    }
    Tune(fd);
    channel->peers_[numbers[0] - 1] = {.fd = fd,
                                       .name = absl::StrCat("rank ", numbers[0], " (", name, ")")};
    --missing;
  }
  channel->StartReading();
  return channel;
}

absl::StatusOr<std::unique_ptr<ControlChannel>> ControlChannel::Connect(const std::string& contact,
                                                                        int rank, int size,
                                                                        absl::Duration timeout) {
  const std::vector<std::string> fields = absl::StrSplit(contact, ' ');
  constexpr size_t kAddresses = 3;  // after the secrets and the port
  int port = 0;
  if (fields.size() <= kAddresses || !absl::SimpleAtoi(fields[2], &port)) {
    return absl::UnavailableError("rank 0 gave no address");
  }
  const std::string name = ProcessName();
  const int32_t numbers[2] = {rank, static_cast<int32_t>(name.size())};
  std::string hello = fields[0];
  hello.append(reinterpret_cast<const char*>(numbers), sizeof(numbers));
  hello += name;
  const absl::Time deadline = absl::Now() + timeout;
  for (size_t i = kAddresses; i < fields.size(); ++i) {
    const int fd = ConnectTo(fields[i], static_cast<uint16_t>(port), deadline);
    if (fd < 0) continue;
    std::string answer;
    const absl::Time soon = std::min(deadline, absl::Now() + kWelcomeTimeout);
    if (!WriteAll(fd, hello.data(), hello.size()) ||
        !ReadExactly(fd, fields[1].size(), soon, &answer) || answer != fields[1]) {
      close(fd);
      continue;
    }
    Tune(fd);
    auto channel = std::unique_ptr<ControlChannel>(new ControlChannel(rank, size));
    channel->peers_.push_back({.fd = fd, .name = "rank 0"});
    channel->StartReading();
    return channel;
  }
  return absl::UnavailableError(absl::StrCat(
      "cannot connect to rank 0 at ",
      absl::StrJoin(fields.begin() + kAddresses, fields.end(), ", "), ", port ", port));
}

ControlChannel::~ControlChannel() {
  if (reader_.joinable()) {
    const char end = 0;
    [[maybe_unused]] const ssize_t written = write(wake_fds_[1], &end, 1);
    reader_.join();
  }
  for (const Peer& peer : peers_) {
    if (peer.fd >= 0) close(peer.fd);
  }
  for (int fd : wake_fds_) {
    if (fd >= 0) close(fd);
  }
}

void ControlChannel::StartReading() {
  if (pipe2(wake_fds_, O_CLOEXEC) != 0) {
    failure_.Set(SocketError("cannot make a pipe"));
    return;
  }
  reader_ = std::thread([this] { Read(); });
}

void ControlChannel::Read() {
  while (true) {
    std::vector<pollfd> entries = {{.fd = wake_fds_[0], .events = POLLIN, .revents = 0}};
    for (const Peer& peer : peers_) {
      entries.push_back({.fd = peer.ended ? -1 : peer.fd, .events = POLLIN, .revents = 0});
    }
    if (poll(entries.data(), entries.size(), -1) < 0) {
      if (errno == EINTR) continue;
      Fail(SocketError("cannot wait for the other ranks"));
      return;
    }
    if (entries[0].revents != 0) return;
    for (size_t i = 0; i < peers_.size(); ++i) {
      if (entries[i + 1].revents == 0) continue;
      const absl::Status read = ReadPeer(peers_[i]);
      if (read.ok()) continue;
      peers_[i].ended = true;
      Lose(read);
    }
  }
}

absl::Status ControlChannel::ReadPeer(Peer& peer) {
  char bytes[1 << 16];
  const ssize_t got = recv(peer.fd, bytes, sizeof(bytes), MSG_DONTWAIT);
  if (got < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK)) {
    return absl::OkStatus();
  }
  if (got <= 0) return Lost(peer, got == 0 ? 0 : errno);
  peer.buffer.append(bytes, static_cast<size_t>(got));
  size_t at = 0;
  while (peer.buffer.size() - at >= kHeaderBytes) {
    uint32_t kind = 0;
    uint64_t size = 0;
    memcpy(&kind, peer.buffer.data() + at, sizeof(kind));
    memcpy(&size, peer.buffer.data() + at + sizeof(kind), sizeof(size));
    if (size > kMaxFrameBytes) return Lost(peer, EPROTO);
    if (peer.buffer.size() - at - kHeaderBytes < size) break;
    TakeFrame(peer, static_cast<Kind>(kind), peer.buffer.substr(at + kHeaderBytes, size));
    at += kHeaderBytes + size;
  }
  peer.buffer.erase(0, at);
  return absl::OkStatus();
}

void ControlChannel::TakeFrame(Peer& peer, Kind kind, std::string bytes) {
  if (kind == Kind::kFailure) return Fail(absl::UnavailableError(bytes));
  std::lock_guard lock(mu_);
  if (kind == Kind::kClose) {
    closed_ = true;
  } else {
    peer.inbox.push_back(std::move(bytes));
  }
  arrived_.notify_all();
}

void ControlChannel::Lose(const absl::Status& why) {
  {
    std::lock_guard lock(mu_);
    if (closed_) return;
  }
  Fail(why);
}

absl::Status ControlChannel::Send(const Peer& peer, Kind kind, const std::string& bytes) {
  std::string frame(kHeaderBytes, '\0');
  const uint64_t size = bytes.size();
  memcpy(frame.data(), &kind, sizeof(kind));
  memcpy(frame.data() + sizeof(kind), &size, sizeof(size));
  frame += bytes;
  std::lock_guard lock(send_mu_);
  if (WriteAll(peer.fd, frame.data(), frame.size())) return absl::OkStatus();
  return Lost(peer, errno);
}

absl::Status ControlChannel::Lost(const Peer& peer, int error) {
  // What a process leaves behind when it ends, and what a host or network that is gone does.
  if (error == 0 || error == ECONNRESET || error == EPIPE) {
    return absl::UnavailableError(absl::StrCat(peer.name, " has ended unexpectedly"));
  }
  return absl::UnavailableError(absl::StrCat(peer.name, " cannot be reached: ", strerror(error)));
}

void ControlChannel::Fail(const absl::Status& status) {
  if (!failure_.Set(status)) return;
  if (rank_ == 0) {
    for (const Peer& peer : peers_) {
      Send(peer, Kind::kFailure, std::string(status.message())).IgnoreError();
    }
  }
  std::lock_guard lock(mu_);
  arrived_.notify_all();
}

absl::Status ControlChannel::Announce(const std::string& bytes) {
  if (failed()) return failure();
  for (const Peer& peer : peers_) {
    if (absl::Status sent = Send(peer, Kind::kAnnouncement, bytes); !sent.ok()) {
      Fail(sent);
      return failure();
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ControlChannel::NextAnnouncement() {
  std::unique_lock lock(mu_);
  std::deque<std::string>& inbox = peers_[0].inbox;
  arrived_.wait(lock, [&] { return !inbox.empty() || closed_ || failed(); });
  if (failed()) return failure();
  if (inbox.empty()) return absl::OutOfRangeError("rank 0 has closed");
  std::string bytes = std::move(inbox.front());
  inbox.pop_front();
  return bytes;
}

absl::Status ControlChannel::Report(const std::string& bytes) {
  if (failed()) return failure();
  absl::Status sent = Send(peers_[0], Kind::kReport, bytes);
  if (sent.ok()) return sent;
  Fail(sent);
  return failure();
}

absl::StatusOr<std::vector<std::string>> ControlChannel::TakeReports() {
  std::unique_lock lock(mu_);
  arrived_.wait(lock, [&] {
    return failed() || std::all_of(peers_.begin(), peers_.end(),
                                   [](const Peer& peer) { return !peer.inbox.empty(); });
  });
  if (failed()) return failure();
  std::vector<std::string> reports;
  for (Peer& peer : peers_) {
    reports.push_back(std::move(peer.inbox.front()));
    peer.inbox.pop_front();
  }
  return reports;
}

void ControlChannel::Close() {
  {
    std::lock_guard lock(mu_);
    if (closed_) return;
    closed_ = true;
  }
  for (const Peer& peer : peers_) Send(peer, Kind::kClose, "").IgnoreError();
}

void ControlChannel::Abort(const absl::Status& why) {
  const std::string message = absl::StrCat("rank ", rank_, " (", ProcessName(),
                                           ") has failed: ", std::string(why.message()));
  // Rank 0 passes it on to the others.
  if (rank_ != 0 && !failed()) Send(peers_[0], Kind::kFailure, message).IgnoreError();
  Fail(absl::UnavailableError(message));
}

}  // namespace verbatim::parallel
