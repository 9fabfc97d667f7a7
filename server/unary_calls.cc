// Tokenize, Detokenize and GetServerInfo.
#include "server/unary_calls.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace verbatim::server {

absl::Status CheckTokenize(const v1::TokenizeRequest& request, const ServiceContext& context) {
  if (absl::Status s = ValidateModelName(request.model(), context.limits); !s.ok()) return s;
  switch (request.input_case()) {
    case v1::TokenizeRequest::INPUT_NOT_SET:
      break;
    case v1::TokenizeRequest::kText:
      // An empty text has a tokenisation, unlike a prompt.
      return request.text().empty() ? absl::OkStatus()
                                    : ValidateText(request.text(), kMaxTokenizeTextBytes);
    case v1::TokenizeRequest::kChat:
      return ValidateChat(request.chat(), kMaxTokenizeTextBytes);
  }
  return absl::InvalidArgumentError("input: one of text and chat must be set");
}

absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                              const ServiceContext& context) {
  absl::StatusOr<std::vector<int32_t>> ids =
      request.has_chat()
          ? TokenizeChat(request.chat(), *context.chat_template, *context.tokenizer)
          : TokenizeText(request.text(),
                         !request.has_add_special_tokens() || request.add_special_tokens(),
                         *context.tokenizer);
  if (!ids.ok()) return ids.status();
  v1::TokenizeResponse response;
  response.mutable_ids()->Add(ids->begin(), ids->end());
  if (request.return_tokens()) {
    for (int32_t id : *ids) response.add_tokens(std::string(context.tokenizer->TokenBytes(id)));
  }
  response.set_max_model_len(context.limits.max_model_len);
  return response;
}

absl::Status CheckDetokenize(const v1::DetokenizeRequest& request, const ServiceContext& context) {
  if (absl::Status s = ValidateModelName(request.model(), context.limits); !s.ok()) return s;
  if (request.ids_size() > kMaxDetokenizeIds) {
    return absl::InvalidArgumentError(
        absl::StrCat("ids: ", request.ids_size(), " ids; at most ", kMaxDetokenizeIds));
  }
  return ConvertTokenIds(request.ids(), "ids", context.limits.vocab_size).status();
}

absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                  const ServiceContext& context) {
  absl::StatusOr<std::vector<int32_t>> ids =
      ConvertTokenIds(request.ids(), "ids", context.limits.vocab_size);
  if (!ids.ok()) return ids.status();
  v1::DetokenizeResponse response;
  response.set_text(context.tokenizer->Decode(*ids, request.skip_special_tokens()));
  return response;
}

void FillPolicies(const engine::Engine& engine, v1::GetServerInfoResponse* response) {
  for (kernels::Policy policy :
       {kernels::Policy::kThroughput, kernels::Policy::kPinned, kernels::Policy::kPortable}) {
    const engine::PolicySupport support = engine.SupportOf(policy);
    v1::PolicyInfo* info = response->add_policies();
    info->set_determinism(static_cast<v1::Determinism>(policy));
    info->set_honoured(support.honoured);
    info->set_numerics_id(support.numerics_id);
    info->set_refusal(support.refusal);
  }
}

v1::GetServerInfoResponse GetServerInfo(const ServiceContext& context) {
  v1::GetServerInfoResponse response = context.server_info;
  const engine::EngineStats stats = context.engine->stats();
  v1::StepStatistics* steps = response.mutable_steps();
  steps->set_steps(stats.steps.steps);
  steps->set_strong_steps(stats.steps.strong_steps);
  steps->set_ride_along_rows(stats.steps.ride_along_rows);
  steps->set_tokens(stats.steps.tokens);
  steps->set_generated_tokens(stats.steps.generated_tokens);
  steps->set_schedule_seconds(absl::ToDoubleSeconds(stats.steps.schedule));
  steps->set_model_seconds(absl::ToDoubleSeconds(stats.steps.model));
  steps->set_sample_seconds(absl::ToDoubleSeconds(stats.steps.sample));
  steps->set_emit_seconds(absl::ToDoubleSeconds(stats.steps.emit));
  steps->set_idle_seconds(absl::ToDoubleSeconds(stats.steps.idle));
  response.set_running_sequences(stats.scheduler.running_sequences);
  response.set_waiting_sequences(stats.scheduler.waiting_sequences);
  response.set_kv_pages_total(stats.scheduler.total_pages);
  response.set_kv_pages_free(stats.scheduler.free_pages);
  response.set_kv_pages_cached(stats.scheduler.cached_pages);
  response.set_kv_cache_bytes(stats.kv_cache_bytes);
  response.set_preemptions(stats.scheduler.preemptions);
  for (const model::MoeStatistics& layer : stats.experts) {
    v1::ExpertStatistics* experts = response.add_experts();
    experts->set_layer(layer.layer);
    experts->set_tokens(layer.tokens);
    for (const int64_t tokens : layer.tokens_per_expert) experts->add_tokens_per_expert(tokens);
    experts->set_lost_slots(layer.lost_slots);
    experts->set_rerouted_slots(layer.rerouted_slots);
    experts->set_imbalance(layer.Imbalance());
  }
  response.set_prefix_queried_tokens(stats.scheduler.prefix_queried_tokens);
  response.set_prefix_hit_tokens(stats.scheduler.prefix_hit_tokens);
  response.set_uptime_seconds(absl::ToDoubleSeconds(absl::Now() - context.start_time));
  if (context.receipts != nullptr) {
    response.set_receipts(true);
    const receipt::PublicKey* key = context.receipts->public_key();
    if (key != nullptr) response.set_receipt_key_id(key->id());
  }
  if (context.response_cache != nullptr) {
    const ResponseCache::Stats cache = context.response_cache->stats();
    v1::ResponseCacheStatistics* out = response.mutable_response_cache();
    out->set_capacity_bytes(cache.capacity_bytes);
    out->set_size_bytes(cache.size_bytes);
    out->set_entries(cache.entries);
    out->set_hits(cache.hits);
    out->set_misses(cache.misses);
    out->set_evictions(cache.evictions);
  }
  if (context.front_end_cpu_seconds) {
    response.set_front_end_cpu_seconds(context.front_end_cpu_seconds());
  }
  return response;
}

}  // namespace verbatim::server
