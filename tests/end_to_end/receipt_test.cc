// Receipts as users meet them: the real binary makes one, another process verifies it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "receipt/canonical.h"
#include "receipt/receipt_test_support.h"
#include "tests/end_to_end/server_process.h"

namespace verbatim::end_to_end {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

const char kModel[] = "tests/fixtures/reference/gguf_llama_q4_1.gguf";

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class ReceiptTest : public ::testing::Test {
 protected:
  struct Run {
    int exit_status;
    std::string output;  // stdout and stderr
  };

  // `verbatim` with these arguments, none of which has a quote.
  Run Verbatim(const std::vector<std::string>& arguments) {
    std::string command = VERBATIM_BINARY;
    for (const std::string& argument : arguments) command += " '" + argument + "'";
    const std::string log = directory_.path() + "/output";
    const int status = std::system((command + " >" + log + " 2>&1").c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadFile(log)};
  }

  static std::vector<std::string> Flags(const std::vector<std::string>& more,
                                        const std::string& model = kModel) {
    std::vector<std::string> flags = {"--model=" + model, "--kv-cache-bytes=16MiB"};
    flags.insert(flags.end(), more.begin(), more.end());
    return flags;
  }

  // The file with the receipts of two sampled answers, signed.
  std::string MakeReceipts() {
    const std::string key = directory_.Write("key.pem", keys_.private_pem);
    ServerProcess server(Flags({"--threads=2", "--receipt-signing-key=" + key}));
    EXPECT_TRUE(server.ready()) << server.log();
    std::string path = directory_.path() + "/r.json";
    const Run run =
        Verbatim({"generate", "--target", server.address(), "--raw", "--determinism", "portable",
                  "--temperature", "0.8", "--top-p", "0.9", "--repetition-penalty", "1.1", "--n",
                  "2", "--max-tokens", "24", "--receipt", path, "the weather was"});
    EXPECT_EQ(run.exit_status, 0) << run.output;
    server.Signal(SIGTERM);
    EXPECT_EQ(server.Wait(), 0);
    return path;
  }

  receipt::TemporaryDirectory directory_;
  receipt::KeyPair keys_ = receipt::Ed25519Pair(1);
};

TEST_F(ReceiptTest, AnotherProcessVerifiesAndRefusesAfterOneFlippedBit) {
  const std::string path = MakeReceipts();
  const std::string text = ReadFile(path);
  ASSERT_EQ(receipt::SplitReceipts(text).size(), 2u);
  ServerProcess server(Flags({"--threads=1", "--cpu-isa=scalar", "--block-size=64",
                              "--max-num-batched-tokens=16", "--max-num-seqs=4"}));
  ASSERT_TRUE(server.ready()) << server.log();
  const std::string public_key = directory_.Write("key.pub", keys_.public_pem);
  for (const std::vector<std::string>& verifier :
       {std::vector<std::string>{"--target", server.address()},
        std::vector<std::string>{"--model", kModel},
        std::vector<std::string>{"--model", kModel, "--cpu-isa", "scalar", "--threads", "1"}}) {
    std::vector<std::string> arguments = {"verify", "--public-key", public_key, path};
    arguments.insert(arguments.end(), verifier.begin(), verifier.end());
    Run run = Verbatim(arguments);
    EXPECT_EQ(run.exit_status, 0) << run.output;
    EXPECT_THAT(run.output, HasSubstr("verified " + path + " line 2: "));

    // One bit anywhere; what a change of the text can do is up to receipt_test.
    for (const std::string field : {"\"seed\":\"", "\"temperature\":\"", "\"row_fingerprints\":[\"",
                                    "\"output_token_ids\":[", "\"value\":\""}) {
      std::string flipped = text;
      const size_t at = flipped.rfind(field) + field.size();
      flipped[at] = static_cast<char>(flipped[at] == '9' ? '8' : flipped[at] ^ 1);
      arguments[3] = directory_.Write("flipped.json", flipped);
      run = Verbatim(arguments);
      EXPECT_EQ(run.exit_status, 1) << field << run.output;
      EXPECT_THAT(run.output, HasSubstr("verified " + arguments[3] + " line 1")) << field;
      EXPECT_THAT(run.output, HasSubstr("REFUSED  " + arguments[3] + " line 2: ")) << field;
    }
  }
}

TEST_F(ReceiptTest, OneFlippedBitOfTheWeightsIsNamed) {
  const std::string path = MakeReceipts();
  std::string model = ReadFile(kModel);
  model[model.size() - 100] = static_cast<char>(model[model.size() - 100] ^ 16);
  const std::string other = directory_.Write("other.gguf", model);
  ServerProcess server(Flags({}, other));
  ASSERT_TRUE(server.ready()) << server.log();
  for (const std::vector<std::string>& verifier :
       {std::vector<std::string>{"--target", server.address()},
        std::vector<std::string>{"--model", other}}) {
    const Run run = Verbatim({"verify", path, verifier[0], verifier[1]});
    EXPECT_EQ(run.exit_status, 1) << run.output;
    EXPECT_THAT(run.output, HasSubstr("REFUSED  " + path + " line 1: weights_sha256: expected "));
    EXPECT_THAT(run.output, Not(HasSubstr("recomputation")));
  }
}

TEST_F(ReceiptTest, ASignatureIsCheckedOffline) {
  const std::string path = MakeReceipts();
  const std::string own = directory_.Write("key.pub", keys_.public_pem);
  const std::string foreign = directory_.Write("foreign.pub", receipt::Ed25519Pair(2).public_pem);
  Run run = Verbatim({"verify", "--public-key", own, path});
  EXPECT_EQ(run.exit_status, 0) << run.output;
  EXPECT_THAT(run.output, HasSubstr("consistent " + path + " line 1: nothing was recomputed"));
  run = Verbatim({"verify", "--public-key", foreign, path});
  EXPECT_EQ(run.exit_status, 1) << run.output;
  EXPECT_THAT(run.output, HasSubstr("REFUSED  " + path + " line 1: signature"));
}

TEST_F(ReceiptTest, WhatIsNoVerdictHasItsOwnStatus) {
  const std::string receipt = directory_.Write("r.json", "{\"seed\":");
  const std::string pem = directory_.Write("key.pub", "nothing");
  EXPECT_EQ(Verbatim({"verify"}).exit_status, 2);
  EXPECT_EQ(Verbatim({"verify", receipt}).exit_status, 2);
  EXPECT_EQ(Verbatim({"verify", receipt, "--target", "x", "--model", "y"}).exit_status, 2);
  Run run = Verbatim({"verify", receipt, "--public-key", pem});
  EXPECT_EQ(run.exit_status, 2);
  EXPECT_THAT(run.output, HasSubstr("--public-key: " + pem + ": holds no public key"));
  run = Verbatim({"verify", directory_.path() + "/none", "--model", kModel});
  EXPECT_EQ(run.exit_status, 3);
  EXPECT_THAT(run.output, HasSubstr("/none: cannot be read"));
  run = Verbatim({"verify", receipt, "--model", kModel});
  EXPECT_EQ(run.exit_status, 1);
  EXPECT_THAT(run.output, StartsWith("REFUSED  " + receipt + ": offset 8: malformed JSON"));
  const std::string good = directory_.Write("good.json", ReadFile("receipt/testdata/golden.json"));
  EXPECT_EQ(Verbatim({"verify", good, "--model", directory_.path() + "/none"}).exit_status, 1)
      << "its chain is wrong, so that no model is opened";
}

TEST_F(ReceiptTest, AServerDoesNotStartWithAKeyThatCannotSign) {
  const std::string open = directory_.Write("open.pem", keys_.private_pem, 0644);
  for (const auto& [file, error] :
       {std::pair<std::string, std::string>{directory_.path() + "/none", "No such file"},
        {open, "its permissions 0644"},
        {directory_.Write("public.pem", keys_.public_pem), "holds no private key"}}) {
    const Run run = Verbatim({"serve", "--model", kModel, "--receipt-signing-key", file});
    EXPECT_NE(run.exit_status, 0);
    EXPECT_THAT(run.output, HasSubstr("--receipt-signing-key: " + file + ": " + error));
  }
}

TEST_F(ReceiptTest, ThroughputAnswersHaveNone) {
  ServerProcess server(Flags({}));
  ASSERT_TRUE(server.ready()) << server.log();
  const Run run =
      Verbatim({"generate", "--target", server.address(), "--raw", "--determinism", "throughput",
                "--receipt", directory_.path() + "/r.json", "the weather was"});
  EXPECT_EQ(run.exit_status, 1);
  EXPECT_THAT(run.output, HasSubstr("FAILED_PRECONDITION: return_receipt: "));
  EXPECT_FALSE(std::filesystem::exists(directory_.path() + "/r.json"));
}

}  // namespace
}  // namespace verbatim::end_to_end
