// Finds added tokens in a text: leftmost, then longest.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "model/tokenizer_spec.h"

namespace verbatim::model {

struct TokenOrText {
  int32_t id;  // -1 for text
  std::string_view text;
};

// Immutable once filled, for use from any thread. Views that it returns are of the text given.
class AddedTokenMatcher {
 public:
  // `text` is what to look for, which a normalizer may have made different from token.text. Empty
  // texts are ignored.
  void Add(const AddedToken& token, std::string_view text);

  // Appends the parts of `text` in order; no text part is empty.
  void Split(std::string_view text, bool parse_special, std::vector<TokenOrText>* parts) const;

 private:
  // Longest token that begins at `pos`: its index and length, or index -1.
  struct Match {
    int32_t index;
    size_t length;
  };
  Match MatchAt(std::string_view text, size_t pos) const;

  std::vector<AddedToken> tokens_;
  absl::flat_hash_map<uint64_t, int32_t> edges_;  // (node, byte) to node; node 0 is the root
  std::vector<int32_t> token_at_node_ = {-1};
  std::array<bool, 256> begins_{};
};

}  // namespace verbatim::model
