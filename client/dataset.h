// The prompts of a load: random token ids, ShareGPT conversations or a file of one's own.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/client.h"

namespace verbatim::client {

// One request of a load, before it is given sampling parameters and a policy.
struct DatasetItem {
  v1::GenerateRequest request;  // only its prompt is set
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
};

enum class DatasetKind { kRandom, kShareGpt, kCustom };

struct DatasetOptions {
  DatasetKind kind = DatasetKind::kRandom;
  std::string path;
  int64_t num_prompts = 100;
  uint64_t seed = 0;
  bool disable_shuffle = false;  // take a file in its order
  bool no_oversample = false;    // a file with fewer prompts gives fewer, rather than some twice

  // Lengths are drawn evenly from [floor(len * (1 - ratio)), ceil(len * (1 + ratio))], at least 1;
  // the prefix is the same in every prompt and comes on top.
  int64_t random_input_len = 128, random_output_len = 64, random_prefix_len = 0;
  double random_range_ratio = 0;

  // Absent: as long as the answer in the file.
  std::optional<int64_t> sharegpt_output_len;

  // Absent: the line's output_tokens, or else 256. -1: the line's, which must be there.
  std::optional<int64_t> custom_output_len;
  bool skip_chat_template = false;  // send custom prompts as plain text
};

// First two turns of a conversation.
struct ShareGptPair {
  std::string prompt, answer;
};

// Reads [{"conversations": [{"value": text, ...}, ...], ...}, ...]; entries with fewer than two
// turns are left out. INVALID_ARGUMENT naming the file and the line or the entry's index.
absl::StatusOr<std::vector<ShareGptPair>> ReadShareGpt(const std::string& path);

struct CustomPrompt {
  std::string prompt;
  std::optional<int64_t> output_tokens;
  int64_t line = 0;  // in the file, from 1
};

// Reads one {"prompt": text, "output_tokens": number} a line; empty lines are skipped,
// output_tokens may be missing and other fields are ignored. INVALID_ARGUMENT naming file and line.
absl::StatusOr<std::vector<CustomPrompt>> ReadCustom(const std::string& path);

// What making prompts needs to know from the server.
struct DatasetServer {
  v1::GetModelInfoResponse model;
  // The number of tokens of the prompt of a request.
  std::function<absl::StatusOr<int64_t>(const v1::GenerateRequest&)> count_tokens;
};

// Answers from `client`, which must outlive the result.
absl::StatusOr<DatasetServer> DescribeServer(Client* client);

// INVALID_ARGUMENT when lengths do not fit into the model's context or the file has no usable
// prompt.
absl::StatusOr<std::vector<DatasetItem>> MakeDataset(const DatasetOptions& options,
                                                     const DatasetServer& server);

}  // namespace verbatim::client
