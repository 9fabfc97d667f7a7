// The tokenizer that a TokenizerSpec describes: added tokens, normalizer, pre-tokenizer, byte-pair
// encoding, decoder.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "model/bpe.h"
#include "model/pre_tokenizer.h"
#include "model/tokenizer.h"
#include "model/tokenizer_added_tokens.h"
#include "model/tokenizer_spec.h"

namespace verbatim::model {

class BpeTokenizer final : public Tokenizer {
 public:
  // Checks the whole specification (duplicate tokens, ids out of range, symbols missing);
  // INVALID_ARGUMENT names the part.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(TokenizerSpec spec);

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options) const override;
  std::string_view TokenBytes(int32_t id) const override;
  std::string_view FirstTokenBytes(int32_t id) const override;
  bool IsSpecial(int32_t id) const override;
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const override;
  int32_t vocab_size() const override { return static_cast<int32_t>(spec_.tokens.size()); }
  std::optional<int32_t> bos_id() const override { return spec_.bos_id; }
  absl::Span<const int32_t> eos_ids() const override { return spec_.eos_ids; }
  std::optional<int32_t> IdOf(std::string_view token_text) const override;
  std::string_view chat_template() const override { return spec_.chat_template; }
  std::string_view fingerprint() const override { return fingerprint_; }

 private:
  explicit BpeTokenizer(TokenizerSpec spec) : spec_(std::move(spec)) {}
  absl::Status Initialise();
  absl::Status CheckIds() const;
  absl::Status IndexTokens();
  absl::Status IndexSymbols();
  void DecodeTokens();

  // A text between added tokens of the raw text.
  absl::Status EncodeText(std::string_view text, bool at_text_start, bool parse_special,
                          std::vector<int32_t>* ids) const;
  // A piece that the pre-tokenizer gave.
  void EncodePiece(std::string_view piece, std::vector<int32_t>* ids) const;
  void EncodeSymbols(std::string_view word, std::vector<int32_t>* ids) const;
  void AppendCharacters(std::string_view word, std::vector<int32_t>* ids) const;
  bool AppendByteTokens(std::string_view bytes, std::vector<int32_t>* ids) const;

  const TokenizerSpec spec_;
  Bpe bpe_;
  std::unique_ptr<PreTokenizer> pre_tokenizer_;
  AddedTokenMatcher raw_added_, normalized_added_;
  absl::flat_hash_map<std::string, int32_t> id_of_text_;
  absl::flat_hash_map<std::string, int32_t> symbol_of_character_;  // characters only, tokens or not
  absl::flat_hash_map<std::string, int32_t>
      id_of_piece_;  // for ignore_merges, by the piece's bytes
  std::array<int32_t, 256>
      symbol_of_byte_;  // the token "<0xNN>" or byte-level symbol; -1 if there is none
  bool has_all_bytes_ = false;
  // No token has U+2581 after another character: a piece may be cut before each such place without
  // changing a merge.
  bool cut_at_metaspace_ = false;
  std::vector<bool> is_added_, is_special_;
  std::vector<std::string> bytes_of_token_;
  std::string fingerprint_;
};

}  // namespace verbatim::model
