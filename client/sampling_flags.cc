// Sampling flags and their translation to the wire.
#include "client/sampling_flags.h"

#include <cmath>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/client.h"
#include "client/command.h"

namespace verbatim::client {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 31;

absl::Status ParseBias(const std::string& text, std::map<int64_t, float>* bias) {
  bias->clear();
  for (const absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> pair =
        absl::StrSplit(part, absl::MaxSplits('=', 1));
    int64_t id = 0;
    float value = 0;
    if (!absl::SimpleAtoi(pair.first, &id) || !absl::SimpleAtof(pair.second, &value)) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", part, "' is not TOKEN_ID=BIAS; several are parted by commas"));
    }
    (*bias)[id] = value;
  }
  return absl::OkStatus();
}

absl::Status ParseIds(const std::string& text, std::vector<int64_t>* ids) {
  ids->clear();
  for (const absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    if (!absl::SimpleAtoi(part, &ids->emplace_back())) {
      return absl::InvalidArgumentError(absl::StrCat("'", part, "' is not a token id"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void SamplingFlags::Register(flags::FlagSet* flags, const Names& names) {
  flags->Group("Sampling (what is not given is left to the server)");
  flags->Add("temperature", &temperature, "0 is greedy; server's default 1");
  flags->Add("top-k", &top_k, "sample from that many most probable tokens; 0 or -1: off");
  flags->Add("top-p", &top_p, "sample from the smallest set with this probability; in (0, 1]");
  flags->Add("min-p", &min_p, "drop tokens below this fraction of the best; in [0, 1]");
  flags->Add("presence-penalty", &presence_penalty, "in [-2, 2]");
  flags->Add("frequency-penalty", &frequency_penalty, "in [-2, 2]");
  flags->Add("repetition-penalty", &repetition_penalty, "in (0, 100]; 1: off");
  flags->AddCustom(
      "logit-bias", "TOKEN_ID=BIAS, parted by commas",
      [this](const std::string& text) { return ParseBias(text, &logit_bias); },
      [this] { return absl::StrJoin(logit_bias, ",", absl::PairFormatter("=")); });
  flags->Add(names.seed, &seed, "seed of the sampler; without it the server draws one");
  if (names.lengths) {
    flags->Add("max-tokens", &max_tokens, "most output tokens");
    flags->Add("min-tokens", &min_tokens, "no end before this many output tokens");
  }
  flags->AddCustom(
      "stop", "text that ends the output; may be given several times",
      [this](const std::string& text) {
        stop.push_back(text);
        return absl::OkStatus();
      },
      [this] { return absl::StrJoin(stop, ","); });
  flags->AddCustom(
      "stop-token-ids", "token ids that end the output, parted by commas",
      [this](const std::string& text) { return ParseIds(text, &stop_token_ids); },
      [this] { return absl::StrJoin(stop_token_ids, ","); });
  flags->Add("ignore-eos", &ignore_eos, "go on after the end-of-text token");
  flags->Add("include-stop-str-in-output", &include_stop_str_in_output,
             "keep the stop text that ended the output");
  flags->Add("skip-special-tokens", &skip_special_tokens, "leave special tokens out of the text");
}

absl::Status SamplingFlags::Check() const {
  const auto in_range = [](const char* flag, const std::optional<float>& value, double low,
                           double high) {
    return value ? CheckRange(flag, static_cast<double>(*value), low, high) : absl::OkStatus();
  };
  const auto positive = [](const char* flag, const std::optional<float>& value, double high) {
    return value ? CheckPositive(flag, static_cast<double>(*value), high) : absl::OkStatus();
  };
  for (const auto& [id, bias] : logit_bias) {
    if (!(bias >= -100 && bias <= 100)) {
      return BadFlag("logit-bias", absl::StrCat(bias, " of token ", id, " is not in [-100, 100]"));
    }
  }
  return FirstError(
      {temperature && !(*temperature >= 0 && std::isfinite(*temperature))
           ? BadFlag("temperature", absl::StrCat(*temperature, " is not a finite number >= 0"))
           : absl::OkStatus(),
       top_k ? CheckRange("top-k", int64_t{*top_k}, -1, std::numeric_limits<int32_t>::max())
             : absl::OkStatus(),
       positive("top-p", top_p, 1), in_range("min-p", min_p, 0, 1),
       in_range("presence-penalty", presence_penalty, -2, 2),
       in_range("frequency-penalty", frequency_penalty, -2, 2),
       positive("repetition-penalty", repetition_penalty, 100),
       max_tokens ? CheckRange("max-tokens", *max_tokens, 1, kMostTokens) : absl::OkStatus(),
       min_tokens ? CheckRange("min-tokens", *min_tokens, 0, kMostTokens) : absl::OkStatus()});
}

v1::SamplingParams SamplingFlags::ToProto() const {
  v1::SamplingParams out;
  if (temperature) out.set_temperature(*temperature);
  if (top_k) out.set_top_k(*top_k);
  if (top_p) out.set_top_p(*top_p);
  if (min_p) out.set_min_p(*min_p);
  if (presence_penalty) out.set_presence_penalty(*presence_penalty);
  if (frequency_penalty) out.set_frequency_penalty(*frequency_penalty);
  if (repetition_penalty) out.set_repetition_penalty(*repetition_penalty);
  for (const auto& [id, bias] : logit_bias) (*out.mutable_logit_bias())[id] = bias;
  if (seed) out.set_seed(*seed);
  if (max_tokens) out.set_max_tokens(*max_tokens);
  if (min_tokens) out.set_min_tokens(*min_tokens);
  for (const std::string& text : stop) out.add_stop(text);
  for (int64_t id : stop_token_ids) out.add_stop_token_ids(id);
  if (ignore_eos) out.set_ignore_eos(true);
  if (include_stop_str_in_output) out.set_include_stop_str_in_output(true);
  if (!skip_special_tokens) out.set_skip_special_tokens(false);
  return out;
}

void AddDeterminismFlag(flags::FlagSet* flags, const std::string& name, const std::string& help,
                        v1::Determinism* determinism) {
  flags->AddCustom(
      name, help,
      [determinism](const std::string& text) {
        const auto parsed = ParseDeterminism(text);
        if (!parsed.ok()) return parsed.status();
        *determinism = *parsed;
        return absl::OkStatus();
      },
      [determinism] {
        return *determinism == v1::DETERMINISM_UNSPECIFIED ? "" : DeterminismName(*determinism);
      });
}

void AddDeterminismFlag(flags::FlagSet* flags, v1::Determinism* determinism) {
  AddDeterminismFlag(
      flags, "determinism",
      "throughput: as fast as the hardware allows; pinned: same bits under any load on one kind of "
      "device; portable: same bits on any device; default: the server's",
      determinism);
}

}  // namespace verbatim::client
