// Choosing prompts and their lengths.
#include "client/dataset.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/prompt_flags.h"

namespace verbatim::client {
namespace {

constexpr int64_t kCustomOutputLen = 256;

// Conversations outside these bounds are left out, as is usual for this data set: an empty or very
// long text says little about serving.
constexpr int64_t kShareGptLeastTokens = 4;
constexpr int64_t kShareGptMostPromptTokens = 1024;
constexpr int64_t kShareGptMostTokens = 2048;

using Random = std::mt19937_64;

int64_t LengthAround(int64_t length, double ratio, Random* random) {
  const auto mean = static_cast<double>(length);
  const auto low = static_cast<int64_t>(std::floor(mean * (1 - ratio)));
  const auto high = static_cast<int64_t>(std::ceil(mean * (1 + ratio)));
  return std::uniform_int_distribution<int64_t>(std::max<int64_t>(1, low),
                                                std::max<int64_t>(1, high))(*random);
}

absl::StatusOr<std::vector<DatasetItem>> MakeRandom(const DatasetOptions& options,
                                                    const v1::GetModelInfoResponse& model) {
  const int64_t longest =
      options.random_prefix_len +
      static_cast<int64_t>(std::ceil(static_cast<double>(options.random_input_len) *
                                     (1 + options.random_range_ratio))) +
      static_cast<int64_t>(std::ceil(static_cast<double>(options.random_output_len) *
                                     (1 + options.random_range_ratio)));
  if (longest > model.max_model_len()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--random-input-len, --random-output-len, --random-prefix-len: up to ", longest,
        " tokens do not fit into the model's context of ", model.max_model_len()));
  }
  Random random(options.seed);
  // The first ids of a vocabulary are often control tokens and single bytes.
  std::uniform_int_distribution<int64_t> id(model.vocab_size() / 10, model.vocab_size() - 1);
  const auto draw = [&] {
    int64_t drawn = id(random);
    while (std::find(model.eos_token_ids().begin(), model.eos_token_ids().end(), drawn) !=
           model.eos_token_ids().end()) {
      drawn = id(random);
    }
    return drawn;
  };
  std::vector<int64_t> prefix(static_cast<size_t>(options.random_prefix_len));
  std::generate(prefix.begin(), prefix.end(), draw);

  std::vector<DatasetItem> items(static_cast<size_t>(options.num_prompts));
  for (DatasetItem& item : items) {
    v1::TokenIds* ids = item.request.mutable_token_ids();
    for (int64_t token : prefix) ids->add_ids(token);
    const int64_t length =
        LengthAround(options.random_input_len, options.random_range_ratio, &random);
    for (int64_t i = 0; i < length; ++i) ids->add_ids(draw());
    item.prompt_tokens = ids->ids_size();
    item.output_tokens =
        LengthAround(options.random_output_len, options.random_range_ratio, &random);
  }
  return items;
}

absl::StatusOr<std::vector<DatasetItem>> MakeShareGpt(const DatasetOptions& options,
                                                      const DatasetServer& server) {
  auto pairs = ReadShareGpt(options.path);
  if (!pairs.ok()) return pairs.status();
  Random random(options.seed);
  if (!options.disable_shuffle) std::shuffle(pairs->begin(), pairs->end(), random);
  const int64_t most_tokens = std::min(kShareGptMostTokens, server.model.max_model_len());
  std::vector<DatasetItem> items;
  for (const ShareGptPair& pair : *pairs) {
    if (static_cast<int64_t>(items.size()) == options.num_prompts) break;
    if (pair.prompt.empty() || pair.answer.empty()) continue;
    DatasetItem item;
    item.request.set_text(pair.prompt);
    const auto prompt_tokens = server.count_tokens(item.request);
    if (!prompt_tokens.ok()) return prompt_tokens.status();
    item.prompt_tokens = *prompt_tokens;
    if (options.sharegpt_output_len.has_value()) {
      item.output_tokens = *options.sharegpt_output_len;
    } else {
      v1::GenerateRequest answer;
      answer.set_text(pair.answer);
      const auto answer_tokens = server.count_tokens(answer);
      if (!answer_tokens.ok()) return answer_tokens.status();
      item.output_tokens = *answer_tokens;
      if (item.output_tokens < kShareGptLeastTokens) continue;
    }
    if (item.prompt_tokens < kShareGptLeastTokens ||
        item.prompt_tokens > kShareGptMostPromptTokens ||
        item.prompt_tokens + item.output_tokens > most_tokens) {
      continue;
    }
    items.push_back(std::move(item));
  }
  if (items.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.path, ": no conversation has a prompt of ", kShareGptLeastTokens, " to ",
        kShareGptMostPromptTokens, " tokens and ", most_tokens, " with its answer"));
  }
  return items;
}

absl::StatusOr<std::vector<DatasetItem>> MakeCustom(const DatasetOptions& options,
                                                    const DatasetServer& server) {
  auto prompts = ReadCustom(options.path);
  if (!prompts.ok()) return prompts.status();
  Random random(options.seed);
  if (!options.disable_shuffle) std::shuffle(prompts->begin(), prompts->end(), random);
  const bool chat = !options.skip_chat_template && server.model.chat_family() != "unknown";
  std::vector<DatasetItem> items;
  for (const CustomPrompt& prompt : *prompts) {
    if (static_cast<int64_t>(items.size()) == options.num_prompts) break;
    DatasetItem item;
    SetPrompt(prompt.prompt, /*system=*/"", chat, &item.request);
    const int64_t wanted = options.custom_output_len.value_or(0);
    if (wanted < 0 && !prompt.output_tokens.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat(options.path, ":", prompt.line,
                       ": output_tokens: is missing, and --custom-output-len is -1"));
    }
    item.output_tokens = wanted > 0 ? wanted : prompt.output_tokens.value_or(kCustomOutputLen);
    const auto prompt_tokens = server.count_tokens(item.request);
    if (!prompt_tokens.ok()) {
      return absl::Status(
          prompt_tokens.status().code(),
          absl::StrCat(options.path, ":", prompt.line, ": ", prompt_tokens.status().message()));
    }
    item.prompt_tokens = *prompt_tokens;
    items.push_back(std::move(item));
  }
  return items;
}

}  // namespace

absl::StatusOr<DatasetServer> DescribeServer(Client* client) {
  auto model = client->GetModelInfo();
  if (!model.ok()) return model.status();
  return DatasetServer{*std::move(model),
                       [client](const v1::GenerateRequest& request) -> absl::StatusOr<int64_t> {
                         v1::TokenizeRequest tokenize;
                         if (request.has_chat()) {
                           *tokenize.mutable_chat() = request.chat();
                         } else {
                           tokenize.set_text(request.text());
                         }
                         const auto tokens = client->Tokenize(tokenize);
                         if (!tokens.ok()) return tokens.status();
                         return tokens->ids_size();
                       }};
}

absl::StatusOr<std::vector<DatasetItem>> MakeDataset(const DatasetOptions& options,
                                                     const DatasetServer& server) {
  if (options.kind == DatasetKind::kRandom) return MakeRandom(options, server.model);
  auto items = options.kind == DatasetKind::kShareGpt ? MakeShareGpt(options, server)
                                                      : MakeCustom(options, server);
  if (!items.ok() || options.no_oversample) return items;
  Random random(options.seed);
  std::uniform_int_distribution<size_t> pick(0, items->size() - 1);
  while (static_cast<int64_t>(items->size()) < options.num_prompts) {
    items->push_back(DatasetItem((*items)[pick(random)]));
  }
  return items;
}

}  // namespace verbatim::client
