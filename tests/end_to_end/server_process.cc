// Spawning of the server, and hand-written calls of the standard services.
#include "tests/end_to_end/server_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "grpcpp/completion_queue.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"
#include "grpcpp/security/credentials.h"

namespace verbatim::end_to_end {
namespace {

std::string Contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace

pid_t ProcessOfRank(pid_t launcher, int rank) {
  const std::string variable =
      std::string("OMPI_COMM_WORLD_RANK=") + std::to_string(rank) + std::string(1, '\0');
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const std::string stat = Contents(entry.path() / "stat");
    // "pid (name) state parent …"
    const size_t end_of_name = stat.rfind(')');
    if (end_of_name == std::string::npos) continue;
    if (std::stol(stat.substr(end_of_name + 4)) != launcher) continue;
    if (Contents(entry.path() / "environ").find(variable) != std::string::npos) {
      return std::stoi(name);
    }
  }
  return -1;
}

ServerProcess::ServerProcess(std::vector<std::string> flags, std::vector<std::string> launcher) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return;
  flags.insert(flags.begin(), {VERBATIM_BINARY, "serve", "--port=0"});
  flags.insert(flags.begin(), launcher.begin(), launcher.end());
  std::vector<char*> argv;
  for (std::string& flag : flags) argv.push_back(flag.data());
  argv.push_back(nullptr);
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // does not outlive a test that crashes
    dup2(fds[1], STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  close(fds[1]);
  stderr_fd_ = fds[0];
  const std::string mark = "ready on ";
  char c;
  while (read(stderr_fd_, &c, 1) == 1) {
    log_.push_back(c);
    if (c != '\n') continue;
    const size_t at = log_.find(mark);
    if (at == std::string::npos) continue;
    const size_t begin = at + mark.size();
    address_ = log_.substr(begin, log_.find(' ', begin) - begin);
    channel_ = grpc::CreateChannel(address_, grpc::InsecureChannelCredentials());
    stub_ = v1::VerbatimService::NewStub(channel_);
    return;
  }
}

ServerProcess::~ServerProcess() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    Wait();
  }
}

Answer ServerProcess::Ask(const v1::GenerateRequest& request) const {
  grpc::ClientContext context;
  auto reader = stub_->Generate(&context, request);
  Answer answer;
  v1::GenerateResponse message;
  while (reader->Read(&message)) {
    if (message.has_finished()) answer.finished = message.finished();
  }
  answer.status = reader->Finish();
  return answer;
}

void ServerProcess::Signal(int signal) const { kill(pid_, signal); }

int ServerProcess::Wait() {
  char buffer[4096];
  ssize_t n;
  while ((n = read(stderr_fd_, buffer, sizeof(buffer))) > 0) log_.append(buffer, n);
  close(stderr_fd_);
  int status = 0;
  waitpid(pid_, &status, 0);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

namespace {

std::string BytesOf(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!message.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& part : slices) {
    bytes.append(reinterpret_cast<const char*>(part.begin()), part.size());
  }
  return bytes;
}

// One request, one answer, whatever kind of method it is; empty on any error.
std::string RawCall(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                    const std::string& request) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  grpc::CompletionQueue queue;
  const auto await = [&queue] {
    void* tag;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  const grpc::Slice slice(request);
  const grpc::ByteBuffer message(&slice, 1);
  grpc::ByteBuffer answer;
  auto call = stub.PrepareCall(&context, method, &queue);
  call->StartCall(nullptr);
  bool ok = await();
  if (ok) {
    call->WriteLast(message, grpc::WriteOptions(), nullptr);
    ok = await();
  }
  if (ok) {
    call->Read(&answer, nullptr);
    ok = await();
  }
  grpc::Status status;
  call->Finish(&status, nullptr);
  await();
  queue.Shutdown();
  return ok ? BytesOf(answer) : "";
}

// A length-delimited field of less than 128 bytes.
std::string Field(int number, const std::string& value) {
  std::string out;
  out.push_back(static_cast<char>(number << 3 | 2));
  out.push_back(static_cast<char>(value.size()));
  return out + value;
}

// Of a HealthCheckResponse { ServingStatus status = 1; }.
int ServingStatus(const std::string& answer) {
  return answer.size() == 2 && answer[0] == 8 ? answer[1] : -1;
}

}  // namespace

int CheckHealth(const std::shared_ptr<grpc::Channel>& channel, const std::string& service) {
  // HealthCheckRequest { string service = 1; }
  return ServingStatus(RawCall(channel, "/grpc.health.v1.Health/Check", Field(1, service)));
}

struct HealthWatch::Call {
  explicit Call(const std::shared_ptr<grpc::Channel>& channel) : stub(channel) {}
  bool Await() {
    void* tag;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  }

  grpc::GenericStub stub;
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream;
  bool open = false;
};

HealthWatch::HealthWatch(const std::shared_ptr<grpc::Channel>& channel)
    : call_(std::make_unique<Call>(channel)) {
  call_->stream =
      call_->stub.PrepareCall(&call_->context, "/grpc.health.v1.Health/Watch", &call_->queue);
  call_->stream->StartCall(nullptr);
  call_->open = call_->Await();
  if (!call_->open) return;
  const grpc::Slice slice(Field(1, ""));
  call_->stream->WriteLast(grpc::ByteBuffer(&slice, 1), grpc::WriteOptions(), nullptr);
  call_->open = call_->Await();
}

HealthWatch::~HealthWatch() {
  call_->context.TryCancel();
  grpc::Status status;
  call_->stream->Finish(&status, nullptr);
  call_->Await();
  call_->queue.Shutdown();
}

int HealthWatch::Next() {
  grpc::ByteBuffer answer;
  if (call_->open) {
    call_->stream->Read(&answer, nullptr);
    call_->open = call_->Await();
  }
  return call_->open ? ServingStatus(BytesOf(answer)) : -1;
}

std::string ListServices(const std::shared_ptr<grpc::Channel>& channel) {
  // ServerReflectionRequest { string list_services = 7; }
  return RawCall(channel, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                 Field(7, "*"));
}

}  // namespace verbatim::end_to_end
