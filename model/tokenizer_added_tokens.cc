// A trie over bytes; the rules for white space and words follow Hugging Face's AddedVocabulary.
#include "model/tokenizer_added_tokens.h"

#include <algorithm>

#include "model/utf8.h"
#include "utf8proc.h"

namespace verbatim::model {
namespace {

uint64_t EdgeKey(int32_t node, uint8_t byte) { return (static_cast<uint64_t>(node) << 8) | byte; }

bool IsSpace(char32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool IsWord(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

// Where the last character of text[0, end) begins.
size_t LastCharacter(std::string_view text, size_t end) {
  size_t begin = end - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  return begin;
}

}  // namespace

void AddedTokenMatcher::Add(const AddedToken& token, std::string_view text) {
  if (text.empty()) return;
  int32_t node = 0;
  for (char c : text) {
    const auto [it, inserted] = edges_.try_emplace(EdgeKey(node, static_cast<uint8_t>(c)),
                                                   static_cast<int32_t>(token_at_node_.size()));
    if (inserted) token_at_node_.push_back(-1);
    node = it->second;
  }
  begins_[static_cast<uint8_t>(text[0])] = true;
  token_at_node_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

AddedTokenMatcher::Match AddedTokenMatcher::MatchAt(std::string_view text, size_t pos) const {
  Match best = {-1, 0};
  int32_t node = 0;
  for (size_t i = pos; i < text.size(); ++i) {
    const auto it = edges_.find(EdgeKey(node, static_cast<uint8_t>(text[i])));
    if (it == edges_.end()) break;
    node = it->second;
    if (token_at_node_[node] >= 0) best = {token_at_node_[node], i + 1 - pos};
  }
  return best;
}

void AddedTokenMatcher::Split(std::string_view text, bool parse_special,
                              std::vector<TokenOrText>* parts) const {
  size_t done = 0;
  for (size_t pos = 0; pos < text.size();) {
    if (!begins_[static_cast<uint8_t>(text[pos])]) {
      ++pos;
      continue;
    }
    const Match match = MatchAt(text, pos);
    if (match.index < 0) {
      ++pos;
      continue;
    }
    const AddedToken& token = tokens_[match.index];
    size_t begin = pos, end = pos + match.length;
    pos = end;  // the text of a token that is not taken is not searched again
    if (token.special && !parse_special) continue;
    if (begin < done) continue;  // its start went to a neighbour's rstrip
    if (token.single_word) {
      if (begin > 0 && IsWord(NextUtf8Unit(text.substr(LastCharacter(text, begin))).code_point)) {
        continue;
      }
      if (end < text.size() && IsWord(NextUtf8Unit(text.substr(end)).code_point)) continue;
    }
    while (token.lstrip && begin > done) {
      const size_t last = LastCharacter(text, begin);
      if (!IsSpace(NextUtf8Unit(text.substr(last)).code_point)) break;
      begin = last;
    }
    while (token.rstrip && end < text.size()) {
      const Utf8Unit unit = NextUtf8Unit(text.substr(end));
      if (!IsSpace(unit.code_point)) break;
      end += unit.length;
    }
    if (begin > done) parts->push_back({-1, text.substr(done, begin - done)});
    parts->push_back({token.id, text.substr(begin, end - begin)});
    done = end;
    pos = std::max(pos, end);
  }
  if (done < text.size()) parts->push_back({-1, text.substr(done)});
}

}  // namespace verbatim::model
