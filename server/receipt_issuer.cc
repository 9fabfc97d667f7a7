// From an answer's record to its receipt.
#include "server/receipt_issuer.h"

#include <algorithm>

namespace verbatim::server {
namespace {

receipt::Sampling ToSampling(const engine::SamplingOptions& in, int64_t max_output_tokens) {
  receipt::Sampling out;
  out.temperature = in.temperature;
  out.top_k = std::max(in.top_k, 0);
  out.top_p = in.top_p;
  out.min_p = in.min_p;
  out.presence_penalty = in.presence_penalty;
  out.frequency_penalty = in.frequency_penalty;
  out.repetition_penalty = in.repetition_penalty;
  out.logit_bias.assign(in.logit_bias.begin(), in.logit_bias.end());
  std::sort(out.logit_bias.begin(), out.logit_bias.end());
  out.n = in.n;
  out.stop = in.stop;
  out.stop_token_ids.assign(in.stop_token_ids.begin(), in.stop_token_ids.end());
  out.ignore_eos = in.ignore_eos;
  out.max_tokens = max_output_tokens;
  out.min_tokens = in.min_tokens;
  out.skip_special_tokens = in.skip_special_tokens;
  out.include_stop_str_in_output = in.include_stop_str_in_output;
  return out;
}

}  // namespace

absl::StatusOr<receipt::Receipt> ReceiptIssuer::Issue(const engine::GenerationRequest& request,
                                                      const std::string& numerics_id,
                                                      const engine::FinishedEvent& event) const {
  const engine::AnswerRecord& record = *event.record;
  receipt::Receipt out;
  out.server_version = identity_.server_version;
  out.model = identity_.model;
  out.weights_sha256 = identity_.weights_sha256;
  out.tokenizer_sha256 = identity_.tokenizer_sha256;
  out.policy = std::string(kernels::NameOf(request.policy));
  out.numerics_id = numerics_id;
  out.prompt_token_ids.assign(request.prompt.begin(), request.prompt.end());
  out.sampling = ToSampling(request.sampling, record.max_output_tokens);
  out.seed = record.seed;
  out.sample_index = event.index;
  out.output_token_ids.assign(record.output.begin(), record.output.end());
  out.finish_reason = event.reason == engine::FinishReason::kLength ? "length" : "stop";
  out.stop_reason = event.stop_reason;
  out.row_fingerprints = record.rows;
  out.logits_sha256 = event.logits_sha256;
  if (key_.has_value()) {
    if (absl::Status status = key_->Sign(&out); !status.ok()) return status;
  }
  return out;
}

}  // namespace verbatim::server
