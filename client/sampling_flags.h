// The flags that describe how a completion is sampled, shared by the client's commands.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "flags/flag_set.h"
#include "verbatim/v1/verbatim.pb.h"

namespace verbatim::client {

// A flag that was not given is not sent: the server's default holds.
struct SamplingFlags {
  std::optional<float> temperature, top_p, min_p;
  std::optional<int32_t> top_k;
  std::optional<float> presence_penalty, frequency_penalty, repetition_penalty;
  std::map<int64_t, float> logit_bias;
  std::optional<uint64_t> seed;
  std::optional<int64_t> max_tokens, min_tokens;
  std::vector<std::string> stop;
  std::vector<int64_t> stop_token_ids;
  bool ignore_eos = false;
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;

  // The flags write into `this`, which must outlive `flags`.
  void Register(flags::FlagSet* flags);
  v1::SamplingParams ToProto() const;
};

// --determinism throughput|pinned|portable.
void AddDeterminismFlag(flags::FlagSet* flags, v1::Determinism* determinism);

// Sets the prompt of `request`: as one user message (after `system`, if any) or as text.
void SetPrompt(const std::string& prompt, const std::string& system, bool chat,
               v1::GenerateRequest* request);

}  // namespace verbatim::client
