// Text to token ids and back: byte-level BPE and SentencePiece-style BPE, read from the model's own
// files.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace verbatim::model {

class GgufFile;

struct EncodeOptions {
  // Add the tokens the model's tokenizer adds by itself (BOS, EOS), as its files say.
  bool add_special_tokens = true;
  // Recognise the text of special tokens ("<|im_start|>") as those tokens.
  bool parse_special = true;
};

// Immutable after creation; all methods may be called from any thread.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // From the `tokenizer.ggml.*` metadata of a GGUF file.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromGguf(const GgufFile& file);
  // From a Hugging Face `tokenizer.json`; `tokenizer_config.json` beside it is read when present.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJsonFile(const std::string& path);

  // Invalid UTF-8 is replaced by U+FFFD before encoding, as Hugging Face tokenizers' callers do
  // with errors="replace".
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                                      const EncodeOptions& options) const = 0;

  // The bytes a token stands for in the middle of a text (may be part of a UTF-8 character); for a
  // special token its text. Empty for ids out of range.
  virtual std::string_view TokenBytes(int32_t id) const = 0;
  // The same for the token that begins a text, where some tokenizers drop a leading space.
  virtual std::string_view FirstTokenBytes(int32_t id) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;

  // Whole-text decoding; invalid UTF-8 becomes U+FFFD. Applies the tokenizer's own leading-space
  // rule.
  virtual std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const = 0;

  virtual int32_t vocab_size() const = 0;
  virtual std::optional<int32_t> bos_id() const = 0;
  // Every id that ends a generation by default (eos, end of turn).
  virtual absl::Span<const int32_t> eos_ids() const = 0;
  // Id of exactly this token text, if there is one.
  virtual std::optional<int32_t> IdOf(std::string_view token_text) const = 0;
  // The Jinja chat template stored in the model's files; empty when there is none.
  virtual std::string_view chat_template() const = 0;
  // SHA-256 (hex) over everything that decides Encode and Decode.
  virtual std::string_view fingerprint() const = 0;
};

// Turns a stream of token ids into a stream of UTF-8 text without ever emitting half a character.
// The concatenation of all Push() results and Flush() equals Tokenizer::Decode of all ids.
class StreamDetokenizer {
 public:
  StreamDetokenizer(const Tokenizer& tokenizer, bool skip_special_tokens);

  // Text that became complete with this token; often the token's text, empty while a character is
  // incomplete.
  std::string Push(int32_t id);
  // What is left: U+FFFD for an incomplete character at the end of the stream, or nothing.
  std::string Flush();

 private:
  const Tokenizer& tokenizer_;
  const bool skip_special_tokens_;
  bool at_start_ = true;
  std::string pending_bytes_;
};

}  // namespace verbatim::model
