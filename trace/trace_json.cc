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
#include "model/mapped_file.h"
#include "model/strict_json.h"
#include "nlohmann/json.hpp"
#include "trace/trace.h"

namespace verbatim::trace {
namespace {

using kernels::ActivationType;
using kernels::DType;
using kernels::NumericMode;
using kernels::Policy;
using nlohmann::json;

constexpr char kFormat[] = "verbatim-trace";
constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
constexpr size_t kMaxString = 4096;
constexpr int64_t kMaxLayers = 4096;

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

// Reads the members of one object; every member must be asked for by the end.
class Reader {
 public:
  Reader(const json& object, std::string path) : object_(object), path_(std::move(path)) {
    if (!object.is_object()) Fail("", "is not an object");
  }

  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }
  std::string Path(const std::string& key) const {
    return path_.empty() ? key : absl::StrCat(path_, ".", key);
  }
  void Fail(const std::string& key, const std::string& what) {
    status_.Update(absl::InvalidArgumentError(absl::StrCat(Path(key), ": ", what)));
  }

  const json* Member(const std::string& key) {
    if (!ok()) return nullptr;
    known_.insert(key);
    const auto it = object_.find(key);
    if (it != object_.end()) return &*it;
    Fail(key, "is missing");
    return nullptr;
  }
  const json* Array(const std::string& key, int64_t max_size) {
    const json* value = Member(key);
    if (value == nullptr) return nullptr;
    if (!value->is_array()) {
      Fail(key, "is not an array");
      return nullptr;
    }
    if (static_cast<int64_t>(value->size()) > max_size) {
      Fail(key, absl::StrCat(value->size(), " entries, at most ", max_size));
      return nullptr;
    }
    return value;
  }
  int64_t Int(const std::string& key, int64_t low, int64_t high) {
    const json* value = Member(key);
    return value == nullptr ? low : IntOf(*value, key, low, high);
  }
  int64_t IntOf(const json& value, const std::string& key, int64_t low, int64_t high) {
    // Large unsigned numbers do not fit int64 and are out of every range here.
    if (!value.is_number_integer() ||
        (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{1} << 62)) {
      Fail(key, "is not an integer in range");
      return low;
    }
    const int64_t number = value.get<int64_t>();
    if (number >= low && number <= high) return number;
    Fail(key, absl::StrCat(number, " is not in [", low, ", ", high, "]"));
    return low;
  }
  bool Bool(const std::string& key) {
    const json* value = Member(key);
    if (value == nullptr) return false;
    if (!value->is_boolean()) Fail(key, "is not true or false");
    return ok() && value->get<bool>();
  }
  std::string String(const std::string& key) {
    const json* value = Member(key);
    return value == nullptr ? std::string() : StringOf(*value, key);
  }
  std::string StringOf(const json& value, const std::string& key) {
    if (!value.is_string()) {
      Fail(key, "is not a string");
      return std::string();
    }
    const std::string& text = value.get_ref<const std::string&>();
    if (text.size() > kMaxString) Fail(key, absl::StrCat("longer than ", kMaxString, " bytes"));
    return text;
  }
  NumericMode Mode(const std::string& key) {
    const std::string text = String(key);
    for (const auto& [name, mode] : kModes) {
      if (name == text) return mode;
    }
    Fail(key, absl::StrCat("'", absl::CHexEscape(text), "' is not a numeric mode"));
    return {};
  }
  // An array of integers of known or minimal length.
  std::vector<int32_t> Ints(const json& value, const std::string& key, size_t min_size,
                            size_t max_size) {
    std::vector<int32_t> out;
    if (!ok()) return out;
    if (!value.is_array() || value.size() < min_size || value.size() > max_size) {
      Fail(key,
           absl::StrCat("is not an array of ", min_size,
                        min_size == max_size ? "" : absl::StrCat(" to ", max_size), " integers"));
      return std::vector<int32_t>(min_size);
    }
    for (const json& entry : value) {
      out.push_back(static_cast<int32_t>(IntOf(entry, key, 0, kMaxInt)));
    }
    return out;
  }
  absl::Status Finish() {
    if (!ok()) return status_;
    for (const auto& [key, value] : object_.items()) {
      if (!known_.contains(key)) Fail(absl::CHexEscape(key), "is not a known field");
    }
    return status_;
  }

 private:
  const json& object_;
  const std::string path_;
  std::set<std::string> known_;
  absl::Status status_;
};

json StepJson(const Step& step) {
  json spans = json::array(), own = json::array(), cuts = json::array();
  for (const Span& span : step.spans) spans.push_back({span.rows, span.first_position});
  for (const OwnSpan& span : step.own) own.push_back({span.span, span.run, span.rows});
  for (const kernels::AttentionCut& cut : step.cuts) {
    json entry = {cut.span, cut.kv_head, cut.row_begin};
    for (int32_t position : cut.positions) entry.push_back(position);
    cuts.push_back(std::move(entry));
  }
  return {{"number", step.number},          {"mode", NameOfMode(step.mode)},
          {"spans", std::move(spans)},      {"own", std::move(own)},
          {"cuts", std::move(cuts)},        {"logit_rows", step.logit_rows},
          {"logit_index", step.logit_index}};
}

absl::Status ReadStep(const json& value, const std::string& path, int64_t* spans_left, Step* step) {
  Reader reader(value, path);
  step->number = reader.Int("number", 0, int64_t{1} << 62);
  step->mode = reader.Mode("mode");
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
  choice->mode = reader.Mode("mode");
  choice->logits = reader.Bool("logits");
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
  const json* runs = reader.Array("runs", kMaxRuns);
  const json* steps = reader.Array("steps", kMaxSteps);
  const json* kernels = reader.Array("kernels", kMaxSteps);
  if (absl::Status status = reader.Finish(); !status.ok()) return status;
  absl::Status status = ReadIdentity(*identity, &trace->identity);
  status.Update(ReadConfiguration(*configuration, &trace->configuration));
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
  const json document = {{"format", kFormat},
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
