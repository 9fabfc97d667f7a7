// Cutting text into the pieces between which byte-pair encoding never merges.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace verbatim::model {

// What becomes of a match (Hugging Face's names).
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct PreTokenizerStep {
  enum class Kind {
    kSplit,      // cut at the matches of `pattern`
    kAddPrefix,  // put `pattern` before every piece that does not start with it (before the text's
                 // first only, if `first`)
    kReplace,    // replace `pattern` (a literal) by `content`
  };
  Kind kind = Kind::kSplit;
  std::string pattern;  // kSplit: a regular expression in Oniguruma's syntax, unless `literal`
  bool literal = false;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;      // cut at what lies between the matches instead
  bool first_only = false;  // kAddPrefix
  std::string content;      // kReplace
};

// The regular expressions by which well-known tokenizers are defined; each fact's source is in
// pre_tokenizer.cc.
extern const char kGpt2Pattern[];
extern const char kLlama3Pattern[];
extern const char kQwen2Pattern[];
extern const char kTekkenPattern[];
extern const char kGpt4oPattern[];

// PCRE2's form of a pattern in the Oniguruma syntax of tokenizer.json. The two differ in what \s
// and \w hold and in a few constructs; INVALID_ARGUMENT for any that has no equal here.
absl::StatusOr<std::string> TranslatePattern(std::string_view pattern);

// Immutable after creation, for use from any thread. Character classes are those of the Unicode
// version that PCRE2 was built with (10.42: Unicode 14): characters assigned later are unassigned
// here.
class PreTokenizer {
 public:
  // Errors name the step's number and what its pattern does wrong.
  static absl::StatusOr<PreTokenizer> Create(const std::vector<PreTokenizerStep>& steps);
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // Appends the pieces of `text` (valid UTF-8), none empty, in order. They are views of `text` or
  // of strings added to `storage`. `at_text_start` says that nothing precedes this text.
  absl::Status Split(std::string_view text, bool at_text_start, std::deque<std::string>* storage,
                     std::vector<std::string_view>* pieces) const;

 private:
  struct CompiledStep;
  PreTokenizer();
  std::vector<std::unique_ptr<CompiledStep>> steps_;
};

}  // namespace verbatim::model
