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

  struct Names {
    std::string seed = "seed";  // of the sampler's seed
    bool lengths = true;        // --max-tokens and --min-tokens exist
  };

  // The flags write into `this`, which must outlive `flags`.
  void Register(flags::FlagSet* flags, const Names& names);
  void Register(flags::FlagSet* flags) { Register(flags, {}); }
  // The ranges of the wire contract, so that a bad value is one error rather than one a request.
  absl::Status Check() const;
  v1::SamplingParams ToProto() const;
};

// --NAME throughput|pinned|portable.
void AddDeterminismFlag(flags::FlagSet* flags, const std::string& name, const std::string& help,
                        v1::Determinism* determinism);
// --determinism, of a single request.
void AddDeterminismFlag(flags::FlagSet* flags, v1::Determinism* determinism);

}  // namespace verbatim::client
