// Chat messages to prompt text, for the template families that Verbatim recognises in a model's own
// template.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/tokenizer.h"

namespace verbatim::model {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant" (and "tool" where the family has it)
  std::string content;
};

enum class ChatFamily { kUnknown, kChatMl, kLlama3, kMistral, kGemma, kZephyr };

class ChatTemplate {
 public:
  // Recognises the family (and its default system message, if the template has one) from the Jinja
  // text. Never fails: a template that is not recognised gives kUnknown, and Render() then says so.
  static ChatTemplate Recognise(std::string_view jinja_source);

  ChatFamily family() const { return family_; }

  // The prompt up to and including the generation header of the assistant. Errors:
  // FAILED_PRECONDITION for an unknown family; INVALID_ARGUMENT naming messages[i] for an unknown
  // role, an empty list, or an order that the family forbids.
  absl::StatusOr<std::string> Render(absl::Span<const ChatMessage> messages,
                                     const Tokenizer& tokenizer) const;

 private:
  ChatFamily family_ = ChatFamily::kUnknown;
  std::string default_system_;
};

}  // namespace verbatim::model
