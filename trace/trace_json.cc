// Traces as JSON: writing in one canonical form, and reading that trusts nothing.
#include <array>
#include <initializer_list>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/ops/moe.h"
#include "model/mapped_file.h"
#include "model/strict_json.h"
#include "nlohmann/json.hpp"
#include "trace/json_reader.h"
#include "trace/trace.h"

namespace verbatim::trace {
namespace {

using kernels::ActivationType;
using kernels::DType;
using kernels::NumericMode;
using kernels::Policy;
using nlohmann::json;

constexpr char kFormat[] = "verbatim-trace";
constexpr int64_t kMaxLayers = 4096;
// Of one layer of a step: slots of all rows. What lies in memory is bounded by the text.
constexpr size_t kMaxRoutingInts = kMaxStepRows * kernels::kMaxExpertsPerToken;

constexpr std::array<std::pair<std::string_view, NumericMode>, 4> kModes = {
    {{"throughput-float32", {Policy::kThroughput, ActivationType::kF32}},
     {"throughput-bfloat16", {Policy::kThroughput, ActivationType::kBF16}},
     {"pinned", {Policy::kPinned, ActivationType::kF32}},
     {"portable", {Policy::kPortable, ActivationType::kF32}}}};

std::string NameOfMode(const NumericMode& mode) {
  for (const auto& [name, value] : kModes) {
    const bool same_activations =
        kernels::IsStrong(mode.policy) || value.activations == mode.activations;
    if (value.policy == mode.policy && same_activations) return std::string(name);
  }
  return "unknown";
}

std::string HexOf(const numerics::RowFingerprint& row) {
  return absl::StrFormat("%016x%016x", row.a, row.b);
}

NumericMode ModeOf(Reader& reader, const std::string& key) {
  const std::string text = reader.String(key);
  for (const auto& [name, mode] : kModes) {
    if (name == text) return mode;
  }
  reader.Fail(key, absl::StrCat("'", absl::CHexEscape(text), "' is not a numeric mode"));
  return {};
}

// [first, second, first, second, …]
json FlatJson(const std::vector<std::pair<int32_t, int32_t>>& pairs) {
  json out = json::array();
  for (const auto& [first, second] : pairs) {
    out.push_back(first);
    out.push_back(second);
  }
  return out;
}

json RoutingJson(const std::vector<LayerRouting>& routing) {
  json out = json::array();
  for (const LayerRouting& layer : routing) {
    out.push_back({layer.experts, FlatJson(layer.wanted), FlatJson(layer.tokens)});
  }
  return out;
}

void ReadPairs(const json& value, const std::string& key, Reader& reader,
               std::vector<std::pair<int32_t, int32_t>>* out) {
  const std::vector<int32_t> ints = reader.Ints(value, key, 0, kMaxRoutingInts);
  if (ints.size() % 2 != 0) reader.Fail(key, "holds half a pair");
  for (size_t i = 0; i + 1 < ints.size(); i += 2) out->emplace_back(ints[i], ints[i + 1]);
}

void ReadRouting(Reader& reader, std::vector<LayerRouting>* out) {
  const json* layers = reader.Array("routing", kMaxLayers);
  if (layers == nullptr) return;
  for (const json& entry : *layers) {
    const std::string key = absl::StrCat("routing[", out->size(), "]");
    if (!entry.is_array() || entry.size() != 3) {
      return reader.Fail(key, "is not an array of experts, wanted and tokens");
    }
    LayerRouting& layer = out->emplace_back();
    layer.experts = reader.Ints(entry[0], key, 0, kMaxRoutingInts, -1);
    ReadPairs(entry[1], key, reader, &layer.wanted);
    ReadPairs(entry[2], key, reader, &layer.tokens);
    if (!reader.ok()) return;
  }
}

absl::Status ReadMixture(const json& value, Mixture* mixture) {
  Reader reader(value, "mixture");
  mixture->num_experts = static_cast<int32_t>(reader.Int("experts", 1, kernels::kMaxExperts));
  mixture->experts_per_token =
      static_cast<int32_t>(reader.Int("experts_per_token", 1, kernels::kMaxExpertsPerToken));
  if (const json* layers = reader.Array("layers", kMaxLayers)) {
    mixture->layers = reader.Ints(*layers, "layers", 0, kMaxLayers);
  }
  return reader.Finish();
}

json StepJson(const Step& step) {
  json spans = json::array(), own = json::array(), cuts = json::array();
  for (const Span& span : step.spans) spans.push_back({span.rows, span.first_position});
  for (const OwnSpan& span : step.own) own.push_back({span.span, span.run, span.rows});
  for (const kernels::AttentionCut& cut : step.cuts) {
    json entry = {cut.span, cut.kv_head, cut.row_begin};
    for (int32_t position : cut.positions) entry.push_back(position);
    cuts.push_back(std::move(entry));
  }
  json out = {{"number", step.number},          {"mode", NameOfMode(step.mode)},
              {"spans", std::move(spans)},      {"own", std::move(own)},
              {"cuts", std::move(cuts)},        {"logit_rows", step.logit_rows},
              {"logit_index", step.logit_index}};
  if (!step.routing.empty()) out["routing"] = RoutingJson(step.routing);
  return out;
}

absl::Status ReadStep(const json& value, const std::string& path, int64_t* spans_left, Step* step) {
  Reader reader(value, path);
  step->number = reader.Int("number", 0, int64_t{1} << 62);
  step->mode = ModeOf(reader, "mode");
  step->logit_rows = static_cast<int32_t>(reader.Int("logit_rows", 0, kMaxStepRows));
  step->logit_index = static_cast<int32_t>(reader.Int("logit_index", -1, kMaxStepRows));
  if (const json* spans = reader.Array("spans", kMaxStepRows)) {
    *spans_left -= static_cast<int64_t>(spans->size());
    if (*spans_left < 0) reader.Fail("spans", absl::StrCat("more than ", kMaxSpans, " in all"));
    for (const json& entry : *spans) {
      const std::vector<int32_t> ints = reader.Ints(entry, "spans", 2, 2);
      if (!reader.ok()) return reader.status();
      step->spans.push_back({.rows = ints[0], .first_position = ints[1]});
    }
  }
  if (const json* own = reader.Array("own", kMaxStepRows)) {
    for (const json& entry : *own) {
      const std::vector<int32_t> ints = reader.Ints(entry, "own", 3, 3);
      if (!reader.ok()) return reader.status();
      step->own.push_back({.span = ints[0], .run = ints[1], .rows = ints[2]});
    }
  }
  if (const json* cuts = reader.Array("cuts", kMaxStepRows)) {
    for (const json& entry : *cuts) {
      const std::vector<int32_t> ints = reader.Ints(entry, "cuts", 4, 4096);
      if (!reader.ok()) return reader.status();
      step->cuts.push_back({.span = ints[0],
                            .kv_head = ints[1],
                            .row_begin = ints[2],
                            .positions = {ints.begin() + 3, ints.end()}});
    }
  }
  if (reader.Has("routing")) ReadRouting(reader, &step->routing);
  return reader.Finish();
}

absl::Status ReadRun(const json& value, const std::string& path, Run* run) {
  Reader reader(value, path);
  run->positions = static_cast<int32_t>(reader.Int("positions", 0, kMaxTokens));
  if (const json* prefix = reader.Array("prefix", kMaxTokens)) {
    for (const json& entry : *prefix) {
      const std::vector<int32_t> ints = reader.Ints(entry, "prefix", 2, 2);
      if (!reader.ok()) return reader.status();
      run->prefix.push_back({.run = ints[0], .page = ints[1]});
    }
  }
  return reader.Finish();
}

absl::Status ReadKernels(const json& value, const std::string& path, KernelChoice* choice) {
  Reader reader(value, path);
  choice->mode = ModeOf(reader, "mode");
  choice->logits = reader.Bool("logits");
  if (reader.Has("experts")) choice->experts = reader.Bool("experts");
  choice->rows = static_cast<int32_t>(reader.Int("rows", 1, kMaxStepRows));
  if (const json* kernels = reader.Array("kernels", 64)) {
    for (const json& entry : *kernels) {
      if (!entry.is_array() || entry.size() != 2) {
        reader.Fail("kernels", "an entry is not a pair of names");
        break;
      }
      std::string matrix = reader.StringOf(entry[0], "kernels");
      choice->kernels.emplace_back(std::move(matrix), reader.StringOf(entry[1], "kernels"));
    }
  }
  return reader.Finish();
}

absl::Status ReadIdentity(const json& value, Identity* identity) {
  Reader reader(value, "identity");
  identity->version = reader.String("version");
  identity->weights_sha256 = reader.String("weights_sha256");
  identity->backend = reader.String("backend");
  identity->numerics = reader.String("numerics");
  return reader.Finish();
}

absl::Status ReadConfiguration(const json& value, Configuration* configuration) {
  Reader reader(value, "configuration");
  configuration->page_tokens = static_cast<int32_t>(reader.Int("page_tokens", 1, 256));
  configuration->logit_slice_rows =
      static_cast<int32_t>(reader.Int("logit_slice_rows", 1, kMaxStepRows));
  configuration->max_model_len = static_cast<int32_t>(reader.Int("max_model_len", 2, kMaxTokens));
  const std::string dtype = reader.String("kv_cache_dtype");
  configuration->kv_cache_dtype = dtype == "bfloat16" ? DType::kBF16 : DType::kF32;
  if (dtype != "bfloat16" && dtype != "float32") {
    reader.Fail("kv_cache_dtype", "is neither float32 nor bfloat16");
  }
  return reader.Finish();
}

std::optional<numerics::RowFingerprint> FingerprintOf(const json& value) {
  if (!value.is_string()) return std::nullopt;
  const std::string& text = value.get_ref<const std::string&>();
  numerics::RowFingerprint row;
  if (text.size() != 32 || text.find_first_not_of("0123456789abcdef") != std::string::npos ||
      !absl::SimpleHexAtoi(text.substr(0, 16), &row.a) ||
      !absl::SimpleHexAtoi(text.substr(16), &row.b)) {
    return std::nullopt;
  }
  return row;
}

// Each entry of an array of objects by `read`.
template <typename T, typename Read>
absl::Status ReadAll(const json* array, const std::string& name, std::vector<T>* out, Read read) {
  if (array == nullptr) return absl::OkStatus();
  out->resize(array->size());
  for (size_t i = 0; i < array->size(); ++i) {
    absl::Status status = read((*array)[i], absl::StrCat(name, "[", i, "]"), &(*out)[i]);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

void ReadFingerprints(const json& array, const std::string& field, int64_t most, Reader& reader,
                      std::vector<numerics::RowFingerprint>* out) {
  if (!array.is_array() || static_cast<int64_t>(array.size()) > most) {
    return reader.Fail(field, absl::StrCat("is not an array of at most ", most));
  }
  for (size_t i = 0; i < array.size(); ++i) {
    const std::optional<numerics::RowFingerprint> row = FingerprintOf(array[i]);
    if (!row.has_value()) {
      return reader.Fail(absl::StrCat(field, "[", i, "]"), "is not 32 hex digits");
    }
    out->push_back(*row);
  }
}

absl::Status ReadAnswer(Reader& reader, Trace* trace) {
  if (const json* tokens = reader.Array("tokens", kMaxTokens)) {
    for (const json& token : *tokens) {
      trace->tokens.push_back(static_cast<int32_t>(reader.IntOf(token, "tokens", 0, kMaxInt)));
    }
  }
  if (const json* rows = reader.Array("logit_row_fingerprints", kMaxTokens)) {
    ReadFingerprints(*rows, "logit_row_fingerprints", kMaxTokens, reader, &trace->logit_rows);
  }
  if (const json* tokens = reader.Array("layer_fingerprints", kMaxTokens)) {
    trace->layers.resize(tokens->size());
    for (size_t i = 0; i < tokens->size() && reader.ok(); ++i) {
      ReadFingerprints((*tokens)[i], absl::StrCat("layer_fingerprints[", i, "]"), kMaxLayers,
                       reader, &trace->layers[i]);
    }
  }
  trace->logits_sha256 = reader.String("logits_sha256");
  trace->prompt_tokens = static_cast<int32_t>(reader.Int("prompt_tokens", 1, kMaxTokens));
  trace->own_runs = static_cast<int32_t>(reader.Int("own_runs", 0, kMaxRuns));
  trace->preemptions = static_cast<int32_t>(reader.Int("preemptions", 0, kMaxInt));
  trace->cached_tokens = static_cast<int32_t>(reader.Int("cached_tokens", 0, kMaxTokens));
  trace->not_replayable = reader.String("not_replayable");
  const std::string determinism = reader.String("determinism");
  for (Policy policy : {Policy::kThroughput, Policy::kPinned, Policy::kPortable}) {
    if (NameOf(policy) == determinism) trace->determinism = policy;
  }
  if (NameOf(trace->determinism) != determinism) {
    reader.Fail("determinism", absl::StrCat("'", absl::CHexEscape(determinism), "' is unknown"));
  }
  return reader.status();
}

absl::Status ReadTrace(const json& value, Trace* trace) {
  Reader reader(value, "");
  if (reader.String("format") != kFormat) {
    reader.Fail("format", absl::StrCat("is not '", kFormat, "'"));
  }
  const int64_t version = reader.Int("version", 0, kMaxInt);
  if (reader.ok() && version != kTraceVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("version: ", version, " is not ", kTraceVersion,
                     ", the version of traces that this program reads"));
  }
  if (absl::Status status = ReadAnswer(reader, trace); !status.ok()) return status;
  const json* identity = reader.Member("identity");
  const json* configuration = reader.Member("configuration");
  const json* mixture = reader.Has("mixture") ? reader.Member("mixture") : nullptr;
  const json* runs = reader.Array("runs", kMaxRuns);
  const json* steps = reader.Array("steps", kMaxSteps);
  const json* kernels = reader.Array("kernels", kMaxSteps);
  if (absl::Status status = reader.Finish(); !status.ok()) return status;
  absl::Status status = ReadIdentity(*identity, &trace->identity);
  status.Update(ReadConfiguration(*configuration, &trace->configuration));
  if (mixture != nullptr) status.Update(ReadMixture(*mixture, &trace->mixture));
  if (!status.ok()) return status;
  int64_t spans_left = kMaxSpans;
  status.Update(ReadAll(runs, "runs", &trace->runs, ReadRun));
  status.Update(ReadAll(steps, "steps", &trace->steps,
                        [&](const json& entry, const std::string& path, Step* step) {
                          return ReadStep(entry, path, &spans_left, step);
                        }));
  status.Update(ReadAll(kernels, "kernels", &trace->kernels, ReadKernels));
  if (!status.ok()) return status;
  return CheckConsistency(*trace);
}

}  // namespace

std::string ToJson(const Trace& trace) {
  json runs = json::array(), steps = json::array(), kernels = json::array();
  for (const Run& run : trace.runs) {
    json prefix = json::array();
    for (const CachedPage& page : run.prefix) prefix.push_back({page.run, page.page});
    runs.push_back({{"prefix", std::move(prefix)}, {"positions", run.positions}});
  }
  for (const Step& step : trace.steps) steps.push_back(StepJson(step));
  for (const KernelChoice& choice : trace.kernels) {
    json names = json::array();
    for (const auto& [matrix, kernel] : choice.kernels) {
      names.push_back(json::array({matrix, kernel}));
    }
    kernels.push_back({{"mode", NameOfMode(choice.mode)},
                       {"logits", choice.logits},
                       {"rows", choice.rows},
                       {"kernels", std::move(names)}});
    if (choice.experts) kernels.back()["experts"] = true;
  }
  const auto hex = [](const std::vector<numerics::RowFingerprint>& rows) {
    json out = json::array();
    for (const numerics::RowFingerprint& row : rows) out.push_back(HexOf(row));
    return out;
  };
  json layers = json::array();
  for (const auto& token : trace.layers) layers.push_back(hex(token));
  const Configuration& configuration = trace.configuration;
  const bool bf16_pages = configuration.kv_cache_dtype == DType::kBF16;
  json document = {{"format", kFormat},
                   {"version", kTraceVersion},
                   {"identity",
                    {{"version", trace.identity.version},
                     {"weights_sha256", trace.identity.weights_sha256},
                     {"backend", trace.identity.backend},
                     {"numerics", trace.identity.numerics}}},
                   {"configuration",
                    {{"page_tokens", configuration.page_tokens},
                     {"kv_cache_dtype", bf16_pages ? "bfloat16" : "float32"},
                     {"logit_slice_rows", configuration.logit_slice_rows},
                     {"max_model_len", configuration.max_model_len}}},
                   {"determinism", std::string(NameOf(trace.determinism))},
                   {"prompt_tokens", trace.prompt_tokens},
                   {"tokens", trace.tokens},
                   {"own_runs", trace.own_runs},
                   {"runs", std::move(runs)},
                   {"steps", std::move(steps)},
                   {"kernels", std::move(kernels)},
                   {"logit_row_fingerprints", hex(trace.logit_rows)},
                   {"layer_fingerprints", std::move(layers)},
                   {"logits_sha256", trace.logits_sha256},
                   {"preemptions", trace.preemptions},
                   {"cached_tokens", trace.cached_tokens},
                   {"not_replayable", trace.not_replayable}};
  if (trace.mixture.num_experts > 0) {
    document["mixture"] = {{"experts", trace.mixture.num_experts},
                           {"experts_per_token", trace.mixture.experts_per_token},
                           {"layers", trace.mixture.layers}};
  }
  return document.dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::StatusOr<Trace> Parse(std::string_view text, const std::string& name) {
  if (static_cast<int64_t>(text.size()) > kMaxTraceBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", text.size(), " bytes, at most ", kMaxTraceBytes));
  }
  absl::StatusOr<json> document = model::ParseStrictJson(text, name, 0);
  if (!document.ok()) return document.status();
  Trace trace;
  absl::Status status = ReadTrace(*document, &trace);
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat(name, ": ", std::string(status.message())));
  }
  return trace;
}

absl::StatusOr<Trace> ReadTraceFile(const std::string& path) {
  absl::StatusOr<std::unique_ptr<model::MappedFile>> file = model::MappedFile::Open(path);
  if (!file.ok()) return file.status();
  return Parse(std::string_view(reinterpret_cast<const char*>((*file)->data()),
                                static_cast<size_t>((*file)->size_bytes())),
               path);
}

}  // namespace verbatim::trace
