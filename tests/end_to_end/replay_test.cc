// Traces as users meet them: asked for over gRPC, replayed and explained by the real binary.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "grpcpp/client_context.h"
#include "tests/end_to_end/server_process.h"

namespace verbatim::end_to_end {
namespace {

using ::testing::HasSubstr;

const char kModel[] = "tests/fixtures/reference/gguf_llama_q4_1.gguf";
const char kMixture[] = "tests/fixtures/reference/gguf_mixtral_q4_1.gguf";

std::vector<std::string> Flags(std::vector<std::string> more = {}, const char* model = kModel) {
  std::vector<std::string> flags = {std::string("--model=") + model, "--kv-cache-bytes=16MiB",
                                    "--threads=2"};
  flags.insert(flags.end(), more.begin(), more.end());
  return flags;
}

v1::GenerateRequest Request(const std::string& text, int64_t max_tokens) {
  v1::GenerateRequest request;
  request.set_text(text);
  request.set_determinism(v1::DETERMINISM_THROUGHPUT);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

// One stream that runs on its own until it is read.
struct Stream {
  grpc::ClientContext call;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
};

std::unique_ptr<Stream> Start(const ServerProcess& server, const v1::GenerateRequest& request) {
  auto stream = std::make_unique<Stream>();
  stream->reader = server.stub().Generate(&stream->call, request);
  return stream;
}

grpc::Status ReadAll(Stream& stream, v1::Finished* finished) {
  v1::GenerateResponse message;
  while (stream.reader->Read(&message)) {
    if (message.has_finished()) *finished = message.finished();
  }
  return stream.reader->Finish();
}

class ReplayTest : public ::testing::Test {
 protected:
  ReplayTest()
      : folder_(std::filesystem::temp_directory_path() /
                ("verbatim-replay-" + std::to_string(getpid()))) {
    std::filesystem::create_directories(folder_);
  }
  ~ReplayTest() override { std::filesystem::remove_all(folder_); }

  std::string Write(const std::string& name, const std::string& text) const {
    const std::string path = folder_ / name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  // Exit status of `verbatim ARGUMENTS`; *out gets what it printed.
  static int Run(const std::string& arguments, std::string* out) {
    const std::string command = std::string(VERBATIM_BINARY) + " " + arguments + " 2>&1";
    std::FILE* pipe = popen(command.c_str(), "r");
    std::array<char, 4096> buffer;
    out->clear();
    while (const size_t size = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
      out->append(buffer.data(), size);
    }
    const int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  const std::filesystem::path folder_;
};

TEST_F(ReplayTest, RecordsReplaysAndExplains) {
  ServerProcess server(Flags({"--allow-traces", "--dtype", "bfloat16"}));
  ASSERT_TRUE(server.ready()) << server.log();
  v1::GenerateRequest traced = Request("one two three four five six", 24);
  traced.set_trace(v1::TRACE_LEVEL_DECISIONS);
  traced.set_disable_prefix_cache(true);

  v1::Finished alone, busy, ignored;
  ASSERT_TRUE(ReadAll(*Start(server, traced), &alone).ok());
  std::vector<std::unique_ptr<Stream>> others;
  for (int i = 0; i < 12; ++i) {
    others.push_back(Start(server, Request("other " + std::to_string(i), 60)));
  }
  traced.set_trace(v1::TRACE_LEVEL_LAYERS);
  ASSERT_TRUE(ReadAll(*Start(server, traced), &busy).ok());
  for (const auto& other : others) ASSERT_TRUE(ReadAll(*other, &ignored).ok());
  EXPECT_FALSE(ignored.has_trace());
  ASSERT_TRUE(alone.has_trace() && busy.has_trace());
  EXPECT_EQ(busy.trace().not_replayable(), "");
  EXPECT_THAT(busy.trace().json(), HasSubstr(busy.logits_sha256()));

  const std::string a = Write("a.json", alone.trace().json());
  const std::string b = Write("b.json", busy.trace().json());
  const std::string model = std::string(" --model ") + kModel + " ";
  std::string out;
  EXPECT_EQ(Run("replay" + model + a, &out), 0) << out;
  EXPECT_THAT(out, HasSubstr("reproduced"));
  EXPECT_EQ(Run("replay --json --filler-seed 7" + model + b, &out), 0) << out;
  EXPECT_THAT(out, HasSubstr("\"reproduced\": true"));

  const std::string page = folder_ / "page.html";
  EXPECT_EQ(Run("explain --page " + page + model + a + " " + b, &out), 0) << out;
  EXPECT_TRUE(std::filesystem::exists(page));

  // Another model, a cut file and one changed byte of a fingerprint.
  EXPECT_EQ(Run("replay --model tests/fixtures/reference/gguf_llama_q8_0.gguf " + a, &out), 1);
  EXPECT_THAT(out, HasSubstr("weights_sha256"));
  const std::string json = alone.trace().json();
  EXPECT_EQ(Run("replay" + model + Write("cut.json", json.substr(0, json.size() / 2)), &out), 1);
  EXPECT_THAT(out, HasSubstr("cut.json: offset"));
  std::string forged = json;
  const size_t digit = forged.find("\"logit_row_fingerprints\":[\"") + 27;
  forged[digit] = forged[digit] == '0' ? '1' : '0';
  EXPECT_EQ(Run("replay" + model + Write("forged.json", forged), &out), 1);
  EXPECT_THAT(out, HasSubstr("not reproduced: output token 0"));
}

TEST_F(ReplayTest, ReplaysAndExplainsLostExperts) {
  ServerProcess server(Flags({"--allow-traces", "--moe-capacity-factor=0.5"}, kMixture));
  ASSERT_TRUE(server.ready()) << server.log();
  v1::GenerateRequest traced = Request("one two three four five six", 12);
  traced.set_trace(v1::TRACE_LEVEL_DECISIONS);
  v1::Finished finished;
  ASSERT_TRUE(ReadAll(*Start(server, traced), &finished).ok());
  EXPECT_EQ(finished.trace().not_replayable(), "");
  EXPECT_THAT(finished.trace().json(), HasSubstr("\"mixture\":{\"experts\":6,"));
  const std::string model = std::string(" --model ") + kMixture + " ";
  const std::string path = Write("lost.json", finished.trace().json());
  std::string out;
  EXPECT_EQ(Run("replay" + model + path, &out), 0) << out;
  EXPECT_THAT(out, HasSubstr("2 of 6 a token in 2 layers"));
  EXPECT_THAT(out, testing::Not(HasSubstr(" 0 lost")));
  EXPECT_THAT(out, HasSubstr("reproduced: all 12 logit rows"));

  const std::string prompt = " --raw --max-tokens 8 --threads 1 'one two three four five six'";
  EXPECT_EQ(Run("explain --moe-capacity-factor 0.75" + model + prompt, &out), 0) << out;
  EXPECT_THAT(out, HasSubstr("expert slots "));
  EXPECT_EQ(Run("explain --moe-overflow best" + model + prompt, &out), 2);
  EXPECT_THAT(out, HasSubstr("--moe-overflow: is not drop or next"));
  EXPECT_EQ(Run("explain --moe-capacity-factor -1" + model + prompt, &out), 2);
  EXPECT_EQ(Run(std::string("explain --moe-capacity-factor 1 --model ") + kModel + prompt, &out),
            1);
  EXPECT_THAT(out, HasSubstr("not a mixture of experts"));
}

TEST_F(ReplayTest, IsRefusedWhereTheServerDoesNotAllowIt) {
  ServerProcess server(Flags());
  ASSERT_TRUE(server.ready()) << server.log();
  v1::GenerateRequest request = Request("one two", 2);
  request.set_trace(v1::TRACE_LEVEL_DECISIONS);
  v1::Finished finished;
  const grpc::Status refused = ReadAll(*Start(server, request), &finished);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(refused.error_message(), HasSubstr("--allow-traces"));
  request.set_trace(static_cast<v1::TraceLevel>(17));
  const grpc::Status unknown = ReadAll(*Start(server, request), &finished);
  EXPECT_EQ(unknown.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(unknown.error_message(), HasSubstr("trace: unknown value 17"));
}

}  // namespace
}  // namespace verbatim::end_to_end
