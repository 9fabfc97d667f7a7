// Encoding and decoding in the order of Hugging Face's pipeline, whose results it must equal.
#include "model/bpe_tokenizer.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/byte_level_bpe.h"
#include "model/tokenizer_fingerprint.h"
#include "model/tokenizer_normalizer.h"
#include "model/utf8.h"

namespace verbatim::model {
namespace {

constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581
constexpr size_t kMaxTextBytes = size_t{1} << 30;
constexpr size_t kMaxTokens = size_t{1} << 24;

absl::string_view Abseil(std::string_view s) { return absl::string_view(s.data(), s.size()); }

// "<0xNN>" to its byte; -1 for any other text.
int ByteTokenValue(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  const int high = digit(text[3]), low = digit(text[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::string ByteTokenText(uint8_t byte) {
  constexpr char kHex[] = "0123456789ABCDEF";
  return absl::StrCat("<0x", std::string({kHex[byte >> 4], kHex[byte & 15]}), ">");
}

}  // namespace

void AddWellKnownEosIds(TokenizerSpec* spec) {
  for (const AddedToken& token : spec->added_tokens) {
    if (!token.special) continue;
    for (std::string_view name : {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>",
                                  "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"}) {
      if (token.text != name) continue;
      bool known = false;
      for (int32_t id : spec->eos_ids) known |= id == token.id;
      if (!known) spec->eos_ids.push_back(token.id);
    }
  }
}

absl::StatusOr<std::unique_ptr<Tokenizer>> BpeTokenizer::Create(TokenizerSpec spec) {
  std::unique_ptr<BpeTokenizer> tokenizer(new BpeTokenizer(std::move(spec)));
  absl::Status status = tokenizer->Initialise();
  if (!status.ok()) return status;
  return tokenizer;
}

absl::Status BpeTokenizer::Initialise() {
  absl::Status status = CheckIds();
  if (status.ok()) status = IndexTokens();
  if (status.ok()) status = IndexSymbols();
  if (!status.ok()) return status;
  absl::StatusOr<PreTokenizer> pre_tokenizer = PreTokenizer::Create(spec_.pre_tokenizer);
  if (!pre_tokenizer.ok()) return pre_tokenizer.status();
  pre_tokenizer_ = std::make_unique<PreTokenizer>(*std::move(pre_tokenizer));
  bpe_ = Bpe(spec_.merges);
  DecodeTokens();
  fingerprint_ = TokenizerFingerprint(spec_);
  return absl::OkStatus();
}

absl::Status BpeTokenizer::CheckIds() const {
  const size_t n = spec_.tokens.size();
  if (n == 0 || n > kMaxTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokens: ", n, " of them; 1 to ", kMaxTokens, " expected"));
  }
  const auto in_range = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < n; };
  const auto check = [&](const char* what, int32_t id) {
    return in_range(id) ? absl::OkStatus()
                        : absl::InvalidArgumentError(absl::StrCat(
                              what, ": id ", id, " is out of range, there are ", n, " tokens"));
  };
  absl::Status status;
  for (const AddedToken& token : spec_.added_tokens) {
    status.Update(check("added_tokens", token.id));
    if (status.ok() && spec_.tokens[token.id] != token.text) {
      status = absl::InvalidArgumentError(
          absl::StrCat("added_tokens: id ", token.id, " is \"", token.text, "\" here and \"",
                       spec_.tokens[token.id], "\" in the vocabulary"));
    }
  }
  for (int32_t id : spec_.prefix_ids) status.Update(check("post_processor", id));
  for (int32_t id : spec_.suffix_ids) status.Update(check("post_processor", id));
  for (int32_t id : spec_.eos_ids) status.Update(check("eos token", id));
  if (spec_.bos_id) status.Update(check("bos token", *spec_.bos_id));
  if (spec_.unknown_id) status.Update(check("unknown token", *spec_.unknown_id));
  return status;
}

absl::Status BpeTokenizer::IndexTokens() {
  const size_t n = spec_.tokens.size();
  id_of_text_.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    const std::string& text = spec_.tokens[i];
    if (!IsValidUtf8(text))
      return absl::InvalidArgumentError(absl::StrCat("tokens[", i, "]: not UTF-8"));
    const auto [it, inserted] = id_of_text_.try_emplace(text, static_cast<int32_t>(i));
    if (!inserted) {
      return absl::InvalidArgumentError(
          absl::StrCat("tokens[", i, "]: \"", text, "\" is also tokens[", it->second, "]"));
    }
  }
  is_added_.assign(n, false);
  is_special_.assign(n, false);
  for (const AddedToken& token : spec_.added_tokens) {
    if (token.text.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("added_tokens: the text of id ", token.id, " is empty"));
    }
    is_added_[token.id] = true;
    is_special_[token.id] = token.special;
    if (!token.normalized) {
      raw_added_.Add(token, token.text);
      continue;
    }
    absl::StatusOr<std::string> text = Normalize(spec_.normalizer, token.text);
    if (!text.ok()) return text.status();
    normalized_added_.Add(token, *text);
  }
  return absl::OkStatus();
}

absl::Status BpeTokenizer::IndexSymbols() {
  has_all_bytes_ = true;
  for (int b = 0; b < 256; ++b) {
    const uint8_t byte = static_cast<uint8_t>(b);
    const auto id = IdOf(spec_.byte_level ? ByteLevelSymbol(byte) : ByteTokenText(byte));
    symbol_of_byte_[b] = id.value_or(-1);
    has_all_bytes_ = has_all_bytes_ && id.has_value();
  }
  if (spec_.byte_level) {
    if (spec_.byte_fallback && !has_all_bytes_) {
      return absl::InvalidArgumentError(
          "byte_fallback with a byte-level vocabulary that lacks some bytes");
    }
  } else {
    const auto add = [&](const std::string& text, size_t id) {
      if (!text.empty() && NextUtf8Unit(text).length == text.size()) {
        symbol_of_character_.try_emplace(text, static_cast<int32_t>(id));
      }
    };
    for (size_t i = 0; i < spec_.tokens.size(); ++i) add(spec_.tokens[i], i);
    for (size_t i = 0; i < spec_.extra_symbols.size(); ++i) {
      add(spec_.extra_symbols[i], spec_.tokens.size() + i);
    }
    cut_at_metaspace_ = !spec_.ignore_merges && symbol_of_character_.contains(Abseil(kMetaspace));
    for (const BpeMerge& merge : spec_.merges) {
      const std::string& text = spec_.tokens[merge.result];
      size_t letters = 0;
      while (text.compare(letters, kMetaspace.size(), kMetaspace) == 0)
        letters += kMetaspace.size();
      if (text.find(kMetaspace, letters) != std::string::npos) cut_at_metaspace_ = false;
    }
  }
  if (spec_.ignore_merges) {
    for (size_t i = 0; i < spec_.tokens.size(); ++i) {
      const std::string& text = spec_.tokens[i];
      if (!spec_.byte_level) {
        id_of_piece_.try_emplace(text, static_cast<int32_t>(i));
      } else if (const auto bytes = ByteLevelDecode(text)) {
        id_of_piece_.try_emplace(*bytes, static_cast<int32_t>(i));
      }
    }
  }
  return absl::OkStatus();
}

void BpeTokenizer::DecodeTokens() {
  bytes_of_token_.reserve(spec_.tokens.size());
  for (size_t i = 0; i < spec_.tokens.size(); ++i) {
    std::string bytes = spec_.tokens[i];
    const int byte = spec_.decode_byte_tokens && !is_added_[i] ? ByteTokenValue(bytes) : -1;
    if (spec_.byte_level) {
      if (!is_added_[i]) bytes = ByteLevelDecode(bytes).value_or(bytes);
    } else if (byte >= 0) {
      bytes.assign(1, static_cast<char>(byte));
    } else if (!is_special_[i]) {
      for (const auto& [from, to] : spec_.decode_replacements) bytes = ReplaceAll(bytes, from, to);
    }
    bytes_of_token_.push_back(std::move(bytes));
  }
}

absl::StatusOr<std::vector<int32_t>> BpeTokenizer::Encode(std::string_view text,
                                                          const EncodeOptions& options) const {
  if (text.size() > kMaxTextBytes) {
    return absl::InvalidArgumentError(absl::StrCat("text: ", text.size(), " bytes; at most ",
                                                   kMaxTextBytes, " can be tokenized"));
  }
  std::string repaired;
  if (!IsValidUtf8(text)) {
    AppendUtf8(text, true, &repaired);
    text = repaired;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  if (options.add_special_tokens) {
    ids.insert(ids.end(), spec_.prefix_ids.begin(), spec_.prefix_ids.end());
  }
  std::vector<TokenOrText> parts;
  raw_added_.Split(text, options.parse_special, &parts);
  for (const TokenOrText& part : parts) {
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    const bool at_text_start = part.text.data() == text.data();
    absl::Status status = EncodeText(part.text, at_text_start, options.parse_special, &ids);
    if (!status.ok()) return status;
  }
  if (options.add_special_tokens) {
    ids.insert(ids.end(), spec_.suffix_ids.begin(), spec_.suffix_ids.end());
  }
  return ids;
}

absl::Status BpeTokenizer::EncodeText(std::string_view text, bool at_text_start, bool parse_special,
                                      std::vector<int32_t>* ids) const {
  std::string normalized;
  if (!spec_.normalizer.empty()) {
    absl::StatusOr<std::string> result = Normalize(spec_.normalizer, text);
    if (!result.ok()) return result.status();
    normalized = *std::move(result);
    text = normalized;
  }
  std::vector<TokenOrText> parts;
  normalized_added_.Split(text, parse_special, &parts);
  std::deque<std::string> storage;
  std::vector<std::string_view> pieces;
  for (const TokenOrText& part : parts) {
    if (part.id >= 0) {
      ids->push_back(part.id);
      continue;
    }
    pieces.clear();
    const bool first = at_text_start && part.text.data() == text.data();
    absl::Status status = pre_tokenizer_->Split(part.text, first, &storage, &pieces);
    if (!status.ok()) return status;
    for (std::string_view piece : pieces) EncodePiece(piece, ids);
  }
  return absl::OkStatus();
}

void BpeTokenizer::EncodePiece(std::string_view piece, std::vector<int32_t>* ids) const {
  if (spec_.ignore_merges) {
    const auto it = id_of_piece_.find(Abseil(piece));
    if (it != id_of_piece_.end()) {
      ids->push_back(it->second);
      return;
    }
  }
  if (!cut_at_metaspace_) return EncodeSymbols(piece, ids);
  size_t begin = 0;
  bool in_letters = false;
  for (size_t pos = 0; pos < piece.size();) {
    const bool metaspace = piece.substr(pos, kMetaspace.size()) == kMetaspace;
    if (metaspace && in_letters) {
      EncodeSymbols(piece.substr(begin, pos - begin), ids);
      begin = pos;
    }
    in_letters = !metaspace;
    pos += metaspace ? kMetaspace.size() : 1;
  }
  EncodeSymbols(piece.substr(begin), ids);
}

void BpeTokenizer::EncodeSymbols(std::string_view word, std::vector<int32_t>* ids) const {
  const size_t begin = ids->size();
  if (spec_.byte_level) {
    for (char c : word) {
      const int32_t symbol = symbol_of_byte_[static_cast<uint8_t>(c)];
      // A byte that the vocabulary lacks is dropped when there is no unknown token, as in Hugging
      // Face's tokenizers.
      if (symbol >= 0) {
        ids->push_back(symbol);
      } else if (spec_.unknown_id &&
                 !(spec_.fuse_unknown && ids->size() > begin && ids->back() == *spec_.unknown_id)) {
        ids->push_back(*spec_.unknown_id);
      }
    }
  } else {
    AppendCharacters(word, ids);
  }
  bpe_.MergeFrom(begin, ids);
  if (spec_.extra_symbols.empty()) return;
  // Symbols that took part in merges but are no tokens fall back to bytes, once nothing merges any
  // more.
  std::vector<int32_t> merged(ids->begin() + begin, ids->end());
  ids->resize(begin);
  for (int32_t symbol : merged) {
    if (symbol < vocab_size()) {
      ids->push_back(symbol);
    } else if (!AppendByteTokens(spec_.extra_symbols[symbol - vocab_size()], ids) &&
               spec_.unknown_id) {
      ids->push_back(*spec_.unknown_id);
    }
  }
}

void BpeTokenizer::AppendCharacters(std::string_view word, std::vector<int32_t>* ids) const {
  bool unknown = false;  // an unknown token waits for further unknown characters to join it
  for (size_t pos = 0; pos < word.size();) {
    const std::string_view character = word.substr(pos, NextUtf8Unit(word.substr(pos)).length);
    pos += character.size();
    const auto it = symbol_of_character_.find(Abseil(character));
    if (it != symbol_of_character_.end()) {
      if (unknown) ids->push_back(*spec_.unknown_id);
      unknown = false;
      ids->push_back(it->second);
    } else if (!(spec_.byte_fallback && AppendByteTokens(character, ids)) && spec_.unknown_id) {
      if (unknown && !spec_.fuse_unknown) ids->push_back(*spec_.unknown_id);
      unknown = true;
    }
  }
  if (unknown) ids->push_back(*spec_.unknown_id);
}

bool BpeTokenizer::AppendByteTokens(std::string_view bytes, std::vector<int32_t>* ids) const {
  for (char c : bytes) {
    if (symbol_of_byte_[static_cast<uint8_t>(c)] < 0) return false;
  }
  for (char c : bytes) ids->push_back(symbol_of_byte_[static_cast<uint8_t>(c)]);
  return true;
}

std::string_view BpeTokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return bytes_of_token_[id];
}

std::string_view BpeTokenizer::FirstTokenBytes(int32_t id) const {
  std::string_view bytes = TokenBytes(id);
  switch (spec_.decode_start) {
    case DecodeStart::kKeep:
      break;
    case DecodeStart::kStripOneSpace:
      if (bytes.substr(0, 1) == " ") bytes.remove_prefix(1);
      break;
    case DecodeStart::kDropMetaspace:
      // Such a token's U+2581 became spaces; where they lead they can be dropped from the view.
      if (!bytes.empty() && !is_special_[id]) {
        while (bytes.substr(0, 1) == " " &&
               std::string_view(spec_.tokens[id]).substr(0, kMetaspace.size()) == kMetaspace) {
          bytes.remove_prefix(1);
        }
      }
      break;
  }
  return bytes;
}

bool BpeTokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && is_special_[id];
}

std::string BpeTokenizer::Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const {
  StreamDetokenizer stream(*this, skip_special_tokens);
  std::string text;
  for (int32_t id : ids) text += stream.Push(id);
  return text + stream.Flush();
}

std::optional<int32_t> BpeTokenizer::IdOf(std::string_view token_text) const {
  const auto it = id_of_text_.find(Abseil(token_text));
  if (it == id_of_text_.end()) return std::nullopt;
  return it->second;
}

}  // namespace verbatim::model
