// Ranks that exchange memory of the CPU over MPI.
//
// MPI itself neither notices that a rank has died nor can be interrupted, so every transfer is
// started without waiting and then polled, together with the control channel, which does notice.
// After a failure MPI is left alone: its orderly end would wait for the dead.
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <mpi.h>
#include <sched.h>

#include <climits>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "parallel/control_channel.h"
#include "parallel/ranks.h"

namespace verbatim::parallel {
namespace {

constexpr absl::Duration kStartTimeout = absl::Minutes(2);
// Ranks are at most a step apart. One that neither answers nor ends for so long is given up.
constexpr absl::Duration kStallLimit = absl::Minutes(5);
// Polls after which a rank that shares its core lets another one run.
constexpr int kPollsBeforeYield = 200;
constexpr int kPollsBeforeClock = 1 << 16;

absl::Status MpiError(const char* what, int code) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  return absl::InternalError(absl::StrCat(what, ": ", text));
}

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(MPI_Comm comm, std::unique_ptr<ControlChannel> channel)
      : comm_(comm), channel_(std::move(channel)) {}
  ~MpiCommunicator() override {
    const bool orderly = !channel_->failed();
    channel_->Close();
    if (!orderly) return;
    MPI_Comm_free(&comm_);
    MPI_Finalize();
  }

  int rank() const override { return channel_->rank(); }
  int size() const override { return channel_->size(); }
  absl::Status Announce(const std::string& bytes) override { return channel_->Announce(bytes); }
  absl::StatusOr<std::string> NextAnnouncement() override { return channel_->NextAnnouncement(); }
  absl::Status Report(const std::string& bytes) override { return channel_->Report(bytes); }
  absl::StatusOr<std::vector<std::string>> TakeReports() override {
    return channel_->TakeReports();
  }
  void Close() override { channel_->Close(); }
  void Abort(const absl::Status& why) override { channel_->Abort(why); }
  absl::Status failure() const override { return channel_->failure(); }
  void OnFailure(std::function<void(const absl::Status&)> callback) override {
    channel_->OnFailure(std::move(callback));
  }

  absl::Status Exchange(absl::Span<const Block> sends, absl::Span<const Block> receives) override {
    if (channel_->failed()) return failure();
    std::vector<MPI_Request> requests;
    absl::Status status;
    for (const Block& block : receives) status.Update(Start(block, /*receive=*/true, requests));
    for (const Block& block : sends) status.Update(Start(block, /*receive=*/false, requests));
    if (status.ok()) return Wait(requests);
    Abort(status);
    return failure();
  }

  absl::Status AllReduceSum(float* data, int64_t count) override {
    if (channel_->failed()) return failure();
    for (int64_t at = 0; at < count; at += INT_MAX) {
      std::vector<MPI_Request> requests(1);
      const int code = MPI_Iallreduce(MPI_IN_PLACE, data + at,
                                      static_cast<int>(std::min<int64_t>(count - at, INT_MAX)),
                                      MPI_FLOAT, MPI_SUM, comm_, requests.data());
      absl::Status status = code == MPI_SUCCESS ? Wait(requests) : MpiError("MPI_Iallreduce", code);
      if (status.ok()) continue;
      Abort(status);
      return failure();
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Start(const Block& block, bool receive, std::vector<MPI_Request>& requests) {
    if (block.rows == 0 || block.cols == 0) return absl::OkStatus();
    if (block.rows > INT_MAX || block.cols > INT_MAX || block.stride > INT_MAX) {
      return absl::InvalidArgumentError(
          absl::StrCat("a block of ", block.rows, " x ", block.cols, " is too large for MPI"));
    }
    MPI_Datatype rows = MPI_FLOAT;
    int code = MPI_Type_vector(static_cast<int>(block.rows), static_cast<int>(block.cols),
                               static_cast<int>(block.rows == 1 ? block.cols : block.stride),
                               MPI_FLOAT, &rows);
    if (code == MPI_SUCCESS) code = MPI_Type_commit(&rows);
    if (code != MPI_SUCCESS) return MpiError("MPI_Type_vector", code);
    MPI_Request request = MPI_REQUEST_NULL;
    constexpr int kTag = 1;
    code = receive ? MPI_Irecv(block.data, 1, rows, block.peer, kTag, comm_, &request)
                   : MPI_Isend(block.data, 1, rows, block.peer, kTag, comm_, &request);
    MPI_Type_free(&rows);  // once the transfer is done
    if (code != MPI_SUCCESS) return MpiError(receive ? "MPI_Irecv" : "MPI_Isend", code);
    requests.push_back(request);
    return absl::OkStatus();
  }

  absl::Status Wait(std::vector<MPI_Request>& requests) {
    absl::Time deadline = absl::InfiniteFuture();
    for (int polls = 1;; ++polls) {
      int done = 0;
      const int code = MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done,
                                   MPI_STATUSES_IGNORE);
      if (code != MPI_SUCCESS) {
        Abort(MpiError("an exchange between ranks", code));
        return failure();
      }
      if (done != 0) return absl::OkStatus();
      if (channel_->failed()) return failure();
      if (polls % kPollsBeforeYield == 0) sched_yield();
      if (polls % kPollsBeforeClock != 0) continue;
      polls = 0;
      if (deadline == absl::InfiniteFuture()) deadline = absl::Now() + kStallLimit;
      if (absl::Now() < deadline) continue;
      Abort(absl::DeadlineExceededError(
          absl::StrCat("another rank has not answered for ", absl::FormatDuration(kStallLimit))));
      return failure();
    }
  }

  MPI_Comm comm_;
  const std::unique_ptr<ControlChannel> channel_;
};

using HelpFunction = int (*)(const char* file, const char* topic, bool header, ...);

int PrintHelp(const char* file, const char* topic, bool, ...) {
  // The control channel knows better.
  if (strcmp(topic, "peer hung up") != 0) {
    std::fprintf(stderr, "Open MPI: '%s' (%s)\n", topic, file);
  }
  return 0;
}

// When a peer's TCP connection ends, Open MPI 4 tells its launcher from within MPI_Testall and
// waits there for an answer, which never comes from one that is ending the job: the rank would be
// killed before it could say anything. What tells is a function pointer there, which is replaced;
// where it is none, as in later versions, nothing is.
void TellTheLauncherNothing() {
  void* symbol = dlsym(RTLD_DEFAULT, "opal_show_help");
  Dl_info info;
  const ElfW(Sym)* entry = nullptr;
  if (symbol == nullptr ||
      dladdr1(symbol, &info, const_cast<void**>(reinterpret_cast<const void**>(&entry)),
              RTLD_DL_SYMENT) == 0 ||
      entry == nullptr || ELF64_ST_TYPE(entry->st_info) != STT_OBJECT ||
      entry->st_size != sizeof(HelpFunction)) {
    return;
  }
  *static_cast<HelpFunction*>(symbol) = &PrintHelp;
}

// Before there is a control channel only time tells that a rank is gone.
absl::Status BroadcastAtStart(void* data, int size_bytes, MPI_Comm comm) {
  MPI_Request request = MPI_REQUEST_NULL;
  int code = MPI_Ibcast(data, size_bytes, MPI_BYTE, 0, comm, &request);
  const absl::Time deadline = absl::Now() + kStartTimeout;
  int done = 0;
  while (code == MPI_SUCCESS && done == 0) {
    code = MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    if (done == 0 && absl::Now() > deadline) {
      return absl::UnavailableError("rank 0 has not said where it listens");
    }
    sched_yield();
  }
  return code == MPI_SUCCESS ? absl::OkStatus() : MpiError("MPI_Ibcast", code);
}

// Rank 0 listens and tells the others where; nothing, where it cannot.
absl::StatusOr<std::unique_ptr<ControlChannel>> Connect(MPI_Comm comm, int rank, int size) {
  absl::StatusOr<std::unique_ptr<ControlListener>> listener = nullptr;
  std::string contact;
  if (rank == 0) {
    listener = ControlListener::Open();
    if (listener.ok()) contact = (*listener)->contact();
  }
  int length = static_cast<int>(contact.size());
  absl::Status told = BroadcastAtStart(&length, sizeof(length), comm);
  if (!told.ok()) return told;
  contact.resize(static_cast<size_t>(length));
  told = BroadcastAtStart(contact.data(), length, comm);
  if (!told.ok()) return told;
  if (!listener.ok()) return listener.status();
  if (rank == 0) return (*listener)->Accept(size, kStartTimeout);
  return ControlChannel::Connect(contact, rank, size, kStartTimeout);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> JoinRanks(int size) {
  if (absl::Status status = CheckRanks(size); !status.ok()) return status;
  int provided = MPI_THREAD_SINGLE;
  // The engine's thread exchanges, the main thread starts and ends.
  const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided);
  if (code != MPI_SUCCESS) return MpiError("MPI_Init_thread", code);
  if (provided < MPI_THREAD_SERIALIZED) {
    return absl::FailedPreconditionError(
        "--tensor-parallel-size: this MPI does not support threads");
  }
  TellTheLauncherNothing();
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  int rank = 0, ranks = 0;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &ranks);
  if (ranks != size) {
    return absl::FailedPreconditionError(
        absl::StrCat("--tensor-parallel-size: ", size, " does not fit MPI's ", ranks, " ranks"));
  }
  auto channel = Connect(comm, rank, size);
  if (!channel.ok()) return channel.status();
  return std::make_unique<MpiCommunicator>(comm, *std::move(channel));
}

}  // namespace verbatim::parallel
