// Comparing two replays row by row.
#include "replay/explanation.h"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/utf8.h"
#include "replay/capture.h"
#include "replay/expert_decision.h"
#include "replay/kernel_choice.h"

namespace verbatim::replay {
namespace {

using model::Operation;

std::string Plural(int64_t count, const std::string& what) {
  return absl::StrCat(count, " ", what, count == 1 ? "" : "s");
}

std::string ModeText(const kernels::NumericMode& mode) {
  if (kernels::IsStrong(mode.policy)) {
    return absl::StrCat(std::string(NameOf(mode.policy)), " kernels (a request in the step asked)");
  }
  return mode.activations == kernels::ActivationType::kBF16 ? "throughput, bf16 activations"
                                                            : "throughput, fp32 activations";
}

// Matrix of a product, as KernelChoice names it; empty for other operations.
std::string MatrixOf(Operation operation) {
  switch (operation) {
    case Operation::kQkv:
      return "qkv";
    case Operation::kAttnOutput:
      return "o";
    case Operation::kRouter:
      return "router";
    case Operation::kGateUp:
      return "gate_up";
    case Operation::kDown:
      return "down";
    case Operation::kLogits:
      return "lm_head";
    default:
      return "";
  }
}

std::string GemmDecision(const trace::Trace& trace, const trace::Step& step, Operation operation,
                         int64_t layer, int64_t rows) {
  const Product product = operation == Operation::kLogits ? Product::kLogits : Product::kLayers;
  const std::string kernel = KernelOf(trace, step.mode, rows, product, MatrixOf(operation), layer);
  if (kernel.empty()) return absl::StrCat("a step of ", Plural(rows, "row"));
  return absl::StrCat(kernel, " kernel for ", Plural(rows, "row"));
}

// How the keys of the row's span were cut, over all heads.
std::string AttentionDecision(const trace::Step& step, int32_t span) {
  if (kernels::IsStrong(step.mode.policy)) return "KV cut at every 256 positions";
  std::vector<std::string> cuts;
  size_t pieces = 1;
  for (const kernels::AttentionCut& cut : step.cuts) {
    if (cut.span != span) continue;
    pieces = std::max(pieces, cut.positions.size() + 1);
    cuts.push_back(
        absl::StrCat("KV head ", cut.kv_head, " at ", absl::StrJoin(cut.positions, " and ")));
  }
  const std::string among =
      absl::StrCat(" in a step of ", Plural(step.rows(), "row"), " of ",
                   Plural(static_cast<int64_t>(step.spans.size()), "sequence"));
  if (cuts.empty()) return absl::StrCat("KV in 1 piece", among);
  return absl::StrCat("KV in ", pieces, " pieces (", absl::StrJoin(cuts, ", "), ")", among);
}

std::string DecisionOf(const trace::Trace& trace, const trace::Step& step, const CapturedRow& row,
                       const Origin& origin) {
  if (origin.operation == Operation::kLogits) {
    return GemmDecision(
        trace, step, origin.operation, 0,
        trace::SliceRows(step.logit_rows, step.logit_index, trace.configuration.logit_slice_rows));
  }
  if (origin.operation == Operation::kDown && RoutingOf(trace, row, origin.layer) != nullptr) {
    return ExpertDecision(trace, row, origin.layer);
  }
  if (!MatrixOf(origin.operation).empty()) {
    return GemmDecision(trace, step, origin.operation, origin.layer, step.rows());
  }
  if (origin.operation == Operation::kAttention) return AttentionDecision(step, row.span);
  return absl::StrCat("a step of ", Plural(step.rows(), "row"));
}

// The first difference in the order in which `a` computed: whatever an operation reads comes before
// it in that order, so what the first different one read was equal.
std::optional<Origin> FindOrigin(const Capture& a, const Capture& b) {
  std::optional<std::tuple<int32_t, size_t, int32_t>> first;
  for (size_t p = 0; p < a.rows().size(); ++p) {
    const CapturedRow& x = a.rows()[p];
    const CapturedRow& y = b.rows()[p];
    const size_t count = std::min(x.outputs.size(), y.outputs.size());
    for (size_t i = 0; i < count; ++i) {
      if (x.outputs[i] == y.outputs[i]) continue;
      const std::tuple<int32_t, size_t, int32_t> key = {x.step, i, static_cast<int32_t>(p)};
      if (!first.has_value() || key < *first) first = key;
      break;
    }
  }
  if (!first.has_value()) return std::nullopt;
  const int64_t index = static_cast<int64_t>(std::get<1>(*first));
  return Origin{.position = std::get<2>(*first),
                .layer = index / model::kNumOperations - 1,
                .operation = static_cast<Operation>(index % model::kNumOperations)};
}

void FillDrift(const Capture& a, const Capture& b, int64_t layers, int64_t hidden,
               Explanation* out) {
  out->drift.resize(static_cast<size_t>(layers));
  for (int64_t layer = 0; layer < layers; ++layer) {
    double layer_max = 0, layer_squares = 0;
    int64_t different = 0;
    for (size_t p = 0; p < a.rows().size(); ++p) {
      const CapturedRow& x = a.rows()[p];
      const CapturedRow& y = b.rows()[p];
      const size_t index = OutputIndex(layer, Operation::kDown);
      if (index < x.outputs.size() && index < y.outputs.size()) {
        different += !(x.outputs[index] == y.outputs[index]);
      }
      if (x.residual.empty() || y.residual.empty()) continue;
      double max_abs = 0, squares = 0, reference = 0;
      for (int64_t i = layer * hidden; i < (layer + 1) * hidden; ++i) {
        const double difference = static_cast<double>(x.residual[i]) - y.residual[i];
        max_abs = std::max(max_abs, std::fabs(difference));
        squares += difference * difference;
        reference += static_cast<double>(x.residual[i]) * x.residual[i];
      }
      const double relative = reference > 0 ? std::sqrt(squares / reference) : std::sqrt(squares);
      out->drift[layer].push_back({.max_abs = max_abs, .rms_relative = relative});
      layer_max = std::max(layer_max, max_abs);
      layer_squares += relative * relative;
    }
    const double rows = static_cast<double>(std::max<size_t>(out->drift[layer].size(), 1));
    out->drift_by_layer.push_back(
        {.max_abs = layer_max, .rms_relative = std::sqrt(layer_squares / rows)});
    out->different_rows_by_layer.push_back(different);
  }
}

void FillLogitDrift(const std::vector<float>& a, const std::vector<float>& b, Explanation* out) {
  double squares = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double difference = static_cast<double>(a[i]) - b[i];
    if (!std::isfinite(difference)) continue;
    out->logit_drift_max = std::max(out->logit_drift_max, std::fabs(difference));
    squares += difference * difference;
  }
  if (!a.empty()) out->logit_drift_rms = std::sqrt(squares / static_cast<double>(a.size()));
}

void FillSide(const trace::Trace& trace, const ReplayResult& result,
              const model::Tokenizer& tokenizer, int64_t token, Side* side) {
  const auto text = [&](int64_t from) {
    const std::vector<int32_t> ids(trace.tokens.begin() + trace.prompt_tokens + from,
                                   trace.tokens.end());
    std::string valid;
    model::AppendUtf8(tokenizer.Decode(ids, /*skip_special_tokens=*/false), /*final=*/true, &valid);
    return valid;
  };
  side->logits_sha256 = trace.logits_sha256;
  side->output_tokens = trace.output_tokens();
  side->completion = text(0);
  if (token >= trace.output_tokens()) return;
  side->continuation = text(token);
  side->token = trace.tokens[trace.prompt_tokens + token];
  side->token_text.clear();
  model::AppendUtf8(tokenizer.TokenBytes(side->token), /*final=*/true, &side->token_text);
  side->top_margin = result.rows[token].top_margin;
}

// The step in which this side computed what differs.
void FillOrigin(const Origin& origin, const trace::Trace& trace, const Capture& capture,
                const ReplayResult& result, Side* side) {
  const CapturedRow& row = capture.rows()[origin.position];
  const bool is_logits = origin.operation == Operation::kLogits;
  const trace::Step& step =
      trace.steps[is_logits ? result.rows[origin.position + 1 - trace.prompt_tokens].step
                            : row.step];
  side->step_number = step.number;
  side->step_rows = step.rows();
  side->step_sequences = static_cast<int64_t>(step.spans.size());
  side->mode = ModeText(step.mode);
  side->decision = DecisionOf(trace, step, row, origin);
}

// Whether the origin is that the row got other experts, and which were full for it.
void FillCapacity(const trace::Trace& x, const Capture& a, const trace::Trace& y, const Capture& b,
                  Explanation* out) {
  const Origin& origin = *out->origin;
  if (origin.operation != Operation::kDown) return;
  const CapturedRow& row_a = a.rows()[origin.position];
  const CapturedRow& row_b = b.rows()[origin.position];
  const std::optional<int32_t> rank = FirstOtherRank(x, row_a, y, row_b, origin.layer);
  if (!rank.has_value()) return;
  out->by_capacity = true;
  out->a.full_expert = FullAt(x, row_a, origin.position, origin.layer, *rank);
  out->b.full_expert = FullAt(y, row_b, origin.position, origin.layer, *rank);
}

std::string RowName(const Explanation& e) {
  const int64_t output = e.origin->position - e.prompt_tokens;
  return output < 0 ? absl::StrCat("prompt token ", e.origin->position)
                    : absl::StrCat("output token ", output);
}

std::string Where(const Explanation& e) {
  const std::string layer = e.origin->operation == Operation::kLogits ? "after the layers"
                            : e.origin->layer < 0                     ? "before the layers"
                                                  : absl::StrCat("layer ", e.origin->layer);
  return absl::StrCat(layer, ", ", std::string(NameOf(e.origin->operation)), ", row of ",
                      RowName(e));
}

std::string SideShape(const Side& side) {
  return absl::StrCat(side.decision, " (", side.name, ", step ", side.step_number, ")");
}

// "Prompt token 31: expert 5 full in layer 7, rerouted to 2 (under load, step 9). "
std::string CapacityText(const Explanation& e) {
  std::string row = RowName(e), out;
  row[0] = absl::ascii_toupper(static_cast<unsigned char>(row[0]));
  for (const Side* side : {&e.a, &e.b}) {
    if (!side->full_expert.has_value()) continue;
    absl::StrAppend(&out, row, ": ", FullText(*side->full_expert), " (", side->name, ", step ",
                    side->step_number, "). ");
  }
  return out;
}

std::string Summarise(const Explanation& e) {
  if (!e.first_different_logits.has_value()) {
    return "Nothing differs: every logit row has the same bits.";
  }
  std::string out;
  if (e.by_capacity) absl::StrAppend(&out, CapacityText(e));
  if (e.origin.has_value()) {
    absl::StrAppend(&out, "Bits first differ at ", Where(e), ": ", SideShape(e.a), " against ",
                    SideShape(e.b));
    if (e.a.mode != e.b.mode) absl::StrAppend(&out, "; ", e.a.mode, " against ", e.b.mode);
    absl::StrAppend(&out, ". ");
  }
  absl::StrAppend(&out, "Logits first differ at output token ", *e.first_different_logits);
  if (!e.logits_decision_a.empty() && e.origin->operation != Operation::kLogits) {
    absl::StrAppend(&out, " (there only by the logits gemm: ", e.logits_decision_a, " against ",
                    e.logits_decision_b, ")");
  }
  if (e.first_different_token.has_value()) {
    absl::StrAppend(&out, ", the tokens at ", *e.first_different_token, ".");
  } else {
    absl::StrAppend(&out, "; the tokens are equal.");
  }
  return out;
}

absl::Status CheckReplay(const NamedTrace& side, const ReplayResult& result) {
  if (result.reproduced()) return absl::OkStatus();
  const std::string why =
      !result.decision_difference.empty() ? result.decision_difference
      : !result.routing_difference.empty()
          ? result.routing_difference
          : absl::StrCat("output token ", *result.first_difference, " has other bits");
  return absl::FailedPreconditionError(
      absl::StrCat(side.name, ": was not reproduced, so nothing can be said about it: ", why));
}

}  // namespace

absl::StatusOr<Explanation> ExplainWith(Replayer& replayer_a, Replayer& replayer_b,
                                        const model::Tokenizer& tokenizer, const NamedTrace& a,
                                        const NamedTrace& b) {
  const trace::Trace& x = *a.trace;
  const trace::Trace& y = *b.trace;
  if (x.prompt_tokens != y.prompt_tokens ||
      !std::equal(x.tokens.begin(), x.tokens.begin() + x.prompt_tokens, y.tokens.begin())) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompts of ", a.name, " and ", b.name, " are not the same"));
  }
  if (x.output_tokens() < 1 || y.output_tokens() < 1) {
    return absl::InvalidArgumentError("an answer without output tokens has nothing to compare");
  }
  Explanation out;
  out.prompt_tokens = x.prompt_tokens;
  out.a.name = a.name;
  out.b.name = b.name;
  const int64_t common = std::min(x.output_tokens(), y.output_tokens());
  for (int64_t i = 0; i < common; ++i) {
    if (!out.first_different_logits.has_value() && !(x.logit_rows[i] == y.logit_rows[i])) {
      out.first_different_logits = i;
    }
    if (x.tokens[x.prompt_tokens + i] != y.tokens[y.prompt_tokens + i]) {
      out.first_different_token = i;
      break;
    }
  }
  if (!out.first_different_token.has_value() && x.output_tokens() != y.output_tokens()) {
    out.first_different_token = common;
  }
  out.compared_token = std::min(out.first_different_token.value_or(common - 1), common - 1);
  out.tokens.assign(x.tokens.begin(), x.tokens.begin() + x.prompt_tokens + out.compared_token);

  Capture capture_a(x, replayer_a.config(), out.compared_token);
  Capture capture_b(y, replayer_b.config(), out.compared_token);
  const auto result_a = replayer_a.Replay(x, {.observer = &capture_a});
  if (!result_a.ok()) return result_a.status();
  if (absl::Status status = CheckReplay(a, *result_a); !status.ok()) return status;
  const auto result_b = replayer_b.Replay(y, {.observer = &capture_b});
  if (!result_b.ok()) return result_b.status();
  if (absl::Status status = CheckReplay(b, *result_b); !status.ok()) return status;

  FillSide(x, *result_a, tokenizer, out.compared_token, &out.a);
  FillSide(y, *result_b, tokenizer, out.compared_token, &out.b);
  FillDrift(capture_a, capture_b, replayer_a.config().num_layers, replayer_a.config().hidden_size,
            &out);
  CountSlots(x, capture_a, &out.a);
  CountSlots(y, capture_b, &out.b);
  FillLogitDrift(capture_a.logits(), capture_b.logits(), &out);
  out.origin = FindOrigin(capture_a, capture_b);
  if (out.first_different_logits.has_value()) {
    const Origin logits = {
        .position = static_cast<int32_t>(x.prompt_tokens + *out.first_different_logits - 1),
        .operation = Operation::kLogits};
    if (capture_a.rows()[logits.position].outputs == capture_b.rows()[logits.position].outputs) {
      Side side_a, side_b;
      FillOrigin(logits, x, capture_a, *result_a, &side_a);
      FillOrigin(logits, y, capture_b, *result_b, &side_b);
      out.logits_decision_a = side_a.decision;
      out.logits_decision_b = side_b.decision;
      if (!out.origin.has_value()) out.origin = logits;
    }
  }
  if (out.origin.has_value()) {
    FillOrigin(*out.origin, x, capture_a, *result_a, &out.a);
    FillOrigin(*out.origin, y, capture_b, *result_b, &out.b);
    FillCapacity(x, capture_a, y, capture_b, &out);
  }
  out.summary = Summarise(out);
  return out;
}

absl::StatusOr<Explanation> Explain(const model::Checkpoint& checkpoint,
                                    const std::string& weights_sha256,
                                    const model::Tokenizer& tokenizer, const NamedTrace& a,
                                    const NamedTrace& b) {
  auto replayer_a = Replayer::Create(checkpoint, weights_sha256, *a.trace);
  if (!replayer_a.ok()) return replayer_a.status();
  if (a.trace->identity == b.trace->identity) {
    return ExplainWith(**replayer_a, **replayer_a, tokenizer, a, b);
  }
  auto replayer_b = Replayer::Create(checkpoint, weights_sha256, *b.trace);
  if (!replayer_b.ok()) return replayer_b.status();
  return ExplainWith(**replayer_a, **replayer_b, tokenizer, a, b);
}

}  // namespace verbatim::replay
