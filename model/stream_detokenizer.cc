// Streaming detokenization: bytes wait until they make a whole character.
#include <string>

#include "model/tokenizer.h"
#include "model/utf8.h"

namespace verbatim::model {

StreamDetokenizer::StreamDetokenizer(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

std::string StreamDetokenizer::Push(int32_t id) {
  if (skip_special_tokens_ && tokenizer_.IsSpecial(id)) return {};
  pending_bytes_.append(at_start_ ? tokenizer_.FirstTokenBytes(id) : tokenizer_.TokenBytes(id));
  if (!tokenizer_.TokenBytes(id).empty()) at_start_ = false;
  std::string text;
  pending_bytes_.erase(0, AppendUtf8(pending_bytes_, /*final=*/false, &text));
  return text;
}

std::string StreamDetokenizer::Flush() {
  std::string text;
  AppendUtf8(pending_bytes_, /*final=*/true, &text);
  pending_bytes_.clear();
  return text;
}

}  // namespace verbatim::model
