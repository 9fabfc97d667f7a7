// Splitting by PCRE2 in UTF mode with its JIT compiler.
#include "model/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace verbatim::model {

// From the pre_tokenizer field of the tokenizer.json that GPT-2 (openai-community/gpt2, built into
// `ByteLevel`), Llama 3 (meta-llama/Meta-Llama-3-8B), Qwen2 (Qwen/Qwen2-0.5B), Mistral Nemo
// (mistralai/Mistral-Nemo-Base-2407) publish, and for GPT-4o from openai/tiktoken's o200k_base.
const char kGpt2Pattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char kLlama3Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
const char kQwen2Pattern[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
const char kTekkenPattern[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
    R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const char kGpt4oPattern[] =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

struct CodeDeleter {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
};
struct MatchDataDeleter {
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};
struct MatchContextDeleter {
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
};
struct JitStackDeleter {
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};
struct CompileContextDeleter {
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
};

constexpr size_t kJitStackStartBytes = 32 * 1024;
constexpr size_t kJitStackMaxBytes = 64 * 1024 * 1024;

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

struct Range {
  std::string_view text;
  bool is_match;
};

// The matches of a step's pattern, one after the other.
class Matcher {
 public:
  explicit Matcher(const pcre2_code* code)
      : code_(code), data_(pcre2_match_data_create_from_pattern(code, nullptr)) {}

  // Finds the first match at or after `from`. NOT_FOUND is not an error here: *found says it.
  absl::Status Find(std::string_view text, size_t from, size_t* begin, size_t* end, bool* found) {
    int rc = Match(text, from);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && !stack_) {
      context_.reset(pcre2_match_context_create(nullptr));
      stack_.reset(pcre2_jit_stack_create(kJitStackStartBytes, kJitStackMaxBytes, nullptr));
      pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
      rc = Match(text, from);
    }
    *found = rc >= 0;
    if (rc == PCRE2_ERROR_NOMATCH) return absl::OkStatus();
    if (rc < 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("text: pre-tokenization failed at byte ", from, ": ", ErrorText(rc)));
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data_.get());
    *begin = bounds[0];
    *end = bounds[1];
    return absl::OkStatus();
  }

 private:
  int Match(std::string_view text, size_t from) {
    return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       PCRE2_NO_UTF_CHECK, data_.get(), context_.get());
  }

  const pcre2_code* code_;
  std::unique_ptr<pcre2_match_data, MatchDataDeleter> data_;
  std::unique_ptr<pcre2_match_context, MatchContextDeleter> context_;
  std::unique_ptr<pcre2_jit_stack, JitStackDeleter> stack_;
};

void AppendRange(std::string_view text, size_t begin, size_t end, bool is_match,
                 std::vector<Range>* ranges) {
  if (end > begin) ranges->push_back({text.substr(begin, end - begin), is_match});
}

// Joins two adjacent views of one text.
std::string_view Join(std::string_view a, std::string_view b) {
  return std::string_view(a.data(), a.size() + b.size());
}

void ApplyBehavior(const std::vector<Range>& ranges, SplitBehavior behavior,
                   std::vector<std::string_view>* out) {
  switch (behavior) {
    case SplitBehavior::kRemoved:
      for (const Range& r : ranges) {
        if (!r.is_match) out->push_back(r.text);
      }
      return;
    case SplitBehavior::kIsolated:
      for (const Range& r : ranges) out->push_back(r.text);
      return;
    case SplitBehavior::kMergedWithPrevious:
      // Only the first of several matches in a row joins what precedes it.
      for (size_t i = 0; i < ranges.size(); ++i) {
        if (i > 0 && ranges[i].is_match && !ranges[i - 1].is_match) {
          out->back() = Join(out->back(), ranges[i].text);
        } else {
          out->push_back(ranges[i].text);
        }
      }
      return;
    case SplitBehavior::kMergedWithNext:
      for (size_t i = 0; i < ranges.size(); ++i) {
        if (ranges[i].is_match && i + 1 < ranges.size() && !ranges[i + 1].is_match) {
          out->push_back(Join(ranges[i].text, ranges[i + 1].text));
          ++i;
        } else {
          out->push_back(ranges[i].text);
        }
      }
      return;
    case SplitBehavior::kContiguous:
      for (size_t i = 0; i < ranges.size(); ++i) {
        if (i > 0 && ranges[i].is_match == ranges[i - 1].is_match) {
          out->back() = Join(out->back(), ranges[i].text);
        } else {
          out->push_back(ranges[i].text);
        }
      }
      return;
  }
}

}  // namespace

struct PreTokenizer::CompiledStep {
  PreTokenizerStep step;
  std::unique_ptr<pcre2_code, CodeDeleter> code;

  absl::Status Ranges(std::string_view text, Matcher* matcher, std::vector<Range>* ranges) const {
    size_t done = 0, from = 0;
    while (from <= text.size()) {
      size_t begin = 0, end = 0;
      bool found;
      if (matcher != nullptr) {
        absl::Status status = matcher->Find(text, from, &begin, &end, &found);
        if (!status.ok()) return status;
      } else {
        begin = text.find(step.pattern, from);
        found = begin != std::string_view::npos;
        end = begin + step.pattern.size();
      }
      if (!found) break;
      AppendRange(text, done, begin, step.invert, ranges);
      AppendRange(text, begin, end, !step.invert, ranges);
      done = end;
      from = end;
      if (end == begin) {  // an empty match: go on after the next character
        from += from < text.size() ? NextUtf8Unit(text.substr(from)).length : 1;
      }
    }
    AppendRange(text, done, text.size(), step.invert, ranges);
    return absl::OkStatus();
  }
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

absl::StatusOr<PreTokenizer> PreTokenizer::Create(const std::vector<PreTokenizerStep>& steps) {
  PreTokenizer result;
  for (size_t i = 0; i < steps.size(); ++i) {
    auto compiled = std::make_unique<CompiledStep>();
    compiled->step = steps[i];
    const std::string& pattern = steps[i].pattern;
    const auto error = [&](const std::string& what) {
      return absl::InvalidArgumentError(
          absl::StrCat("pre-tokenizer step ", i, ": pattern \"", pattern, "\": ", what));
    };
    if (!IsValidUtf8(pattern) || pattern.empty()) return error("empty or not UTF-8");
    if (steps[i].kind == PreTokenizerStep::Kind::kSplit && !steps[i].literal) {
      absl::StatusOr<std::string> translated = TranslatePattern(pattern);
      if (!translated.ok()) return error(std::string(translated.status().message()));
      std::unique_ptr<pcre2_compile_context, CompileContextDeleter> context(
          pcre2_compile_context_create(nullptr));
      pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
      int code = 0;
      PCRE2_SIZE offset = 0;
      // MULTILINE because ^ and $ always mean lines in Oniguruma's Ruby syntax.
      compiled->code.reset(pcre2_compile(
          reinterpret_cast<PCRE2_SPTR>(translated->data()), translated->size(),
          PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_DOLLAR_ENDONLY,
          &code, &offset, context.get()));
      if (!compiled->code) {
        return error(absl::StrCat(ErrorText(code), " (near \"",
                                  translated->substr(std::min(offset, translated->size())), "\")"));
      }
      // Without JIT on this machine the interpreter gives the same matches.
      pcre2_jit_compile(compiled->code.get(), PCRE2_JIT_COMPLETE);
    }
    result.steps_.push_back(std::move(compiled));
  }
  return result;
}

absl::Status PreTokenizer::Split(std::string_view text, bool at_text_start,
                                 std::deque<std::string>* storage,
                                 std::vector<std::string_view>* pieces) const {
  std::vector<std::string_view> current, next;
  std::vector<Range> ranges;
  if (!text.empty()) current.push_back(text);
  for (const auto& compiled : steps_) {
    const PreTokenizerStep& step = compiled->step;
    next.clear();
    std::unique_ptr<Matcher> matcher;
    if (compiled->code) matcher = std::make_unique<Matcher>(compiled->code.get());
    for (size_t i = 0; i < current.size(); ++i) {
      const std::string_view piece = current[i];
      if (step.kind == PreTokenizerStep::Kind::kAddPrefix) {
        const bool wanted = !step.first_only || (at_text_start && i == 0);
        if (wanted && piece.substr(0, step.pattern.size()) != step.pattern) {
          storage->push_back(absl::StrCat(step.pattern, std::string(piece)));
          next.push_back(storage->back());
        } else {
          next.push_back(piece);
        }
        continue;
      }
      ranges.clear();
      absl::Status status = compiled->Ranges(piece, matcher.get(), &ranges);
      if (!status.ok()) return status;
      if (step.kind == PreTokenizerStep::Kind::kReplace) {
        std::string replaced;
        for (const Range& r : ranges) replaced.append(r.is_match ? step.content : r.text);
        storage->push_back(std::move(replaced));
        if (!storage->back().empty()) next.push_back(storage->back());
      } else {
        ApplyBehavior(ranges, step.behavior, &next);
      }
    }
    current.swap(next);
  }
  pieces->insert(pieces->end(), current.begin(), current.end());
  return absl::OkStatus();
}

}  // namespace verbatim::model
