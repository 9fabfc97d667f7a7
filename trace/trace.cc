// Consistency of a trace's records.
#include "trace/trace.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "trace/routing.h"

namespace verbatim::trace {
namespace {

absl::Status Bad(const std::string& field, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

bool SameMode(const kernels::NumericMode& a, const kernels::NumericMode& b) {
  return a.policy == b.policy && a.activations == b.activations;
}

absl::Status CheckRuns(const Trace& trace) {
  const int32_t runs = static_cast<int32_t>(trace.runs.size());
  const int32_t page_tokens = trace.configuration.page_tokens;
  if (trace.own_runs < 1 || trace.own_runs > runs) {
    return Bad("own_runs", absl::StrCat(trace.own_runs, " is not in [1, ", runs, "]"));
  }
  for (int32_t r = 0; r < runs; ++r) {
    const Run& run = trace.runs[r];
    const std::string field = absl::StrCat("runs[", r, "]");
    const int64_t prefix = static_cast<int64_t>(run.prefix.size());
    if (run.positions < prefix * page_tokens ||
        run.positions > static_cast<int64_t>(trace.tokens.size())) {
      return Bad(absl::StrCat(field, ".positions"),
                 absl::StrCat(run.positions, " do not hold the prefix or exceed the tokens"));
    }
    for (int64_t p = 0; p < prefix; ++p) {
      const CachedPage& page = run.prefix[p];
      const std::string at = absl::StrCat(field, ".prefix[", p, "]");
      if (page.run >= runs || page.run == r) {
        return Bad(at, absl::StrCat("run ", page.run, " is not another of ", runs, " runs"));
      }
      const Run& writer = trace.runs[page.run];
      // The writer computed the page itself, as the page of the same place; so chains of references
      // end, because every link leads to a run with fewer cached pages.
      if (page.page != p || static_cast<int64_t>(writer.prefix.size()) > p ||
          writer.positions < (p + 1) * page_tokens) {
        return Bad(at, absl::StrCat("run ", page.run, " did not compute page ", page.page));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckStep(const Trace& trace, const Step& step, const std::string& field,
                       std::vector<int32_t>* done, int64_t* sampled) {
  if (step.rows() > kMaxStepRows || step.spans.empty()) {
    return Bad(absl::StrCat(field, ".spans"),
               absl::StrCat(step.rows(), " rows are not in [1, ", kMaxStepRows, "]"));
  }
  for (size_t i = 0; i < step.spans.size(); ++i) {
    const Span& span = step.spans[i];
    if (span.rows < 1 ||
        int64_t{span.first_position} + span.rows > trace.configuration.max_model_len) {
      return Bad(absl::StrCat(field, ".spans[", i, "]"),
                 absl::StrCat("positions ", span.first_position, " to ",
                              int64_t{span.first_position} + span.rows,
                              " are none or exceed max_model_len"));
    }
  }
  if (step.own.empty()) return Bad(absl::StrCat(field, ".own"), "is empty");
  int32_t previous = -1;
  bool own_run_here = false;
  for (size_t i = 0; i < step.own.size(); ++i) {
    const OwnSpan& own = step.own[i];
    const std::string at = absl::StrCat(field, ".own[", i, "]");
    if (own.span <= previous || own.span >= static_cast<int32_t>(step.spans.size())) {
      return Bad(at, absl::StrCat("span ", own.span, " is not of this step or out of order"));
    }
    previous = own.span;
    if (own.run >= static_cast<int32_t>(trace.runs.size())) {
      return Bad(at, absl::StrCat("run ", own.run, " does not exist"));
    }
    const Span& span = step.spans[own.span];
    if (span.first_position != (*done)[own.run]) {
      return Bad(at, absl::StrCat("begins at position ", span.first_position, ", the run is at ",
                                  (*done)[own.run]));
    }
    for (const CachedPage& page : trace.runs[own.run].prefix) {
      if ((*done)[page.run] < (page.page + 1) * trace.configuration.page_tokens) {
        return Bad(at, absl::StrCat("page ", page.page, " of run ", page.run,
                                    " is read before it is written"));
      }
    }
    const int32_t left = trace.runs[own.run].positions - span.first_position;
    const bool is_answer = own.run < trace.own_runs;
    if (own.rows < 1 || own.rows > span.rows || own.rows > left ||
        (own.rows < span.rows && (is_answer || own.rows != left))) {
      return Bad(at, absl::StrCat(own.rows, " rows do not fit a span of ", span.rows, " and ", left,
                                  " positions left of the run"));
    }
    (*done)[own.run] += own.rows;
    own_run_here |= is_answer;
  }
  for (size_t i = 0; i < step.cuts.size(); ++i) {
    const int32_t span = step.cuts[i].span;
    if (std::none_of(step.own.begin(), step.own.end(),
                     [&](const OwnSpan& own) { return own.span == span; })) {
      return Bad(absl::StrCat(field, ".cuts[", i, "]"), absl::StrCat("span ", span, " is not own"));
    }
  }
  if (step.logit_rows < 0 || step.logit_rows > step.rows()) {
    return Bad(absl::StrCat(field, ".logit_rows"),
               absl::StrCat(step.logit_rows, " of ", step.rows(), " rows"));
  }
  if (absl::Status routed = CheckRouting(trace, step, field); !routed.ok()) return routed;
  if (step.logit_index < 0) return absl::OkStatus();
  if (step.logit_index >= step.logit_rows) {
    return Bad(absl::StrCat(field, ".logit_index"),
               absl::StrCat(step.logit_index, " of ", step.logit_rows, " logit rows"));
  }
  // The row that gives output token i is that of the token before it.
  const int32_t position = static_cast<int32_t>(trace.prompt_tokens + *sampled - 1);
  const auto own = std::find_if(step.own.begin(), step.own.end(), [&](const OwnSpan& candidate) {
    return candidate.run < trace.own_runs;
  });
  if (!own_run_here || step.spans[own->span].first_position + own->rows - 1 != position) {
    return Bad(absl::StrCat(field, ".logit_index"),
               absl::StrCat("no own span of the step ends at position ", position));
  }
  ++*sampled;
  return absl::OkStatus();
}

absl::Status CheckKernels(const Trace& trace) {
  std::set<std::pair<kernels::ActivationType, int32_t>> of_experts;
  for (size_t i = 0; i < trace.kernels.size(); ++i) {
    const KernelChoice& choice = trace.kernels[i];
    if (choice.experts && (choice.logits || trace.mixture.num_experts == 0)) {
      return Bad(absl::StrCat("kernels[", i, "].experts"), "there are no experts");
    }
    if (choice.experts) of_experts.emplace(choice.mode.activations, choice.rows);
  }
  const auto known = [&](const kernels::NumericMode& mode, bool logits, int64_t rows) {
    return std::any_of(trace.kernels.begin(), trace.kernels.end(), [&](const KernelChoice& choice) {
      return SameMode(choice.mode, mode) && choice.logits == logits && !choice.experts &&
             choice.rows == rows;
    });
  };
  for (size_t i = 0; i < trace.steps.size(); ++i) {
    const Step& step = trace.steps[i];
    if (!known(step.mode, false, step.rows())) {
      return Bad("kernels",
                 absl::StrCat("say nothing of the ", step.rows(), " rows of steps[", i, "]"));
    }
    if (kernels::IsStrong(step.mode.policy)) continue;  // there they do not depend on tokens
    for (const LayerRouting& layer : step.routing) {
      for (const auto& [expert, tokens] : layer.tokens) {
        if (tokens == 0 || of_experts.contains({step.mode.activations, tokens})) continue;
        return Bad("kernels", absl::StrCat("say nothing of the ", tokens, " tokens of expert ",
                                           expert, " in steps[", i, "]"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckMixture(const Mixture& mixture) {
  if (mixture.num_experts == 0) return absl::OkStatus();
  if (mixture.experts_per_token > mixture.num_experts) {
    return Bad("mixture.experts_per_token",
               absl::StrCat(mixture.experts_per_token, " of ", mixture.num_experts, " experts"));
  }
  if (mixture.layers.empty()) return Bad("mixture.layers", "is empty");
  for (size_t i = 1; i < mixture.layers.size(); ++i) {
    if (mixture.layers[i] <= mixture.layers[i - 1]) {
      return Bad("mixture.layers", "does not ascend");
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t Step::rows() const {
  int64_t rows = 0;
  for (const Span& span : spans) rows += span.rows;
  return rows;
}

int64_t Step::own_rows() const {
  int64_t rows = 0;
  for (const OwnSpan& span : own) rows += span.rows;
  return rows;
}

void Trace::DropSteps(const std::string& why) {
  not_replayable = why;
  runs.clear();
  steps.clear();
  kernels.clear();
  own_runs = 0;
}

bool Step::operator==(const Step& other) const {
  return number == other.number && SameMode(mode, other.mode) && spans == other.spans &&
         own == other.own && logit_rows == other.logit_rows && logit_index == other.logit_index &&
         cuts == other.cuts && routing == other.routing;
}

bool KernelChoice::operator==(const KernelChoice& other) const {
  return SameMode(mode, other.mode) && logits == other.logits && experts == other.experts &&
         rows == other.rows && kernels == other.kernels;
}

std::vector<kernels::AttentionCut> OwnCuts(const Step& step,
                                           const std::vector<kernels::AttentionCut>& cuts) {
  std::vector<kernels::AttentionCut> own;
  for (const kernels::AttentionCut& cut : cuts) {
    if (std::any_of(step.own.begin(), step.own.end(),
                    [&](const OwnSpan& span) { return span.span == cut.span; })) {
      own.push_back(cut);
    }
  }
  return own;
}

int32_t SliceRows(int32_t rows, int32_t index, int32_t slice) {
  return std::min(slice, rows - index / slice * slice);
}

absl::Status CheckConsistency(const Trace& trace) {
  if (trace.prompt_tokens < 1 || trace.prompt_tokens > static_cast<int64_t>(trace.tokens.size())) {
    return Bad("prompt_tokens",
               absl::StrCat(trace.prompt_tokens, " of ", trace.tokens.size(), " tokens"));
  }
  if (static_cast<int64_t>(trace.logit_rows.size()) != trace.output_tokens()) {
    return Bad("logit_rows", absl::StrCat(trace.logit_rows.size(), " rows for ",
                                          trace.output_tokens(), " output tokens"));
  }
  if (!trace.layers.empty() && trace.layers.size() != trace.logit_rows.size()) {
    return Bad("layer_fingerprints", absl::StrCat("of ", trace.layers.size(), " tokens, there are ",
                                                  trace.logit_rows.size()));
  }
  for (const auto& token : trace.layers) {
    if (token.size() != trace.layers[0].size()) {
      return Bad("layer_fingerprints", "tokens have different numbers of layers");
    }
  }
  if (absl::Status status = CheckMixture(trace.mixture); !status.ok()) return status;
  if (!trace.replayable()) return absl::OkStatus();
  if (absl::Status status = CheckRuns(trace); !status.ok()) return status;
  std::vector<int32_t> done;
  for (const Run& run : trace.runs) {
    done.push_back(static_cast<int32_t>(run.prefix.size()) * trace.configuration.page_tokens);
  }
  int64_t sampled = 0;
  int64_t spans = 0;
  for (size_t i = 0; i < trace.steps.size(); ++i) {
    const std::string field = absl::StrCat("steps[", i, "]");
    if (i > 0 && trace.steps[i].number <= trace.steps[i - 1].number) {
      return Bad(absl::StrCat(field, ".number"), "does not ascend");
    }
    spans += static_cast<int64_t>(trace.steps[i].spans.size());
    if (spans > kMaxSpans) return Bad("steps", absl::StrCat("more than ", kMaxSpans, " spans"));
    absl::Status status = CheckStep(trace, trace.steps[i], field, &done, &sampled);
    if (!status.ok()) return status;
  }
  if (sampled != trace.output_tokens()) {
    return Bad("steps",
               absl::StrCat("give ", sampled, " tokens, the answer has ", trace.output_tokens()));
  }
  for (size_t r = 0; r < trace.runs.size(); ++r) {
    if (done[r] != trace.runs[r].positions) {
      return Bad(absl::StrCat("runs[", r, "]"),
                 absl::StrCat("the steps compute ", done[r], " of its ", trace.runs[r].positions,
                              " positions"));
    }
  }
  return CheckKernels(trace);
}

}  // namespace verbatim::trace
