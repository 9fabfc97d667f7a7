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
  // Recognises the family and its variant (default system message, spaces, trimming) from the Jinja
  // text. Never fails: a template that is not wholly understood gives kUnknown, and Render() then
  // says so.
  static ChatTemplate Recognise(std::string_view jinja_source);

  ChatFamily family() const { return family_; }
  // What takes the place of a system message when the first message is none; empty where nothing
  // does.
  std::string_view default_system() const { return default_system_; }

  // The prompt up to and including the generation header of the assistant. It holds the text of
  // every special token, BOS too, so encode it with add_special_tokens = false. Errors:
  // FAILED_PRECONDITION for an unknown family; INVALID_ARGUMENT naming messages[i] for an unknown
  // role, an empty list, or an order that the family forbids.
  absl::StatusOr<std::string> Render(absl::Span<const ChatMessage> messages,
                                     const Tokenizer& tokenizer) const;

 private:
  // Where families without a system turn put the system message.
  enum class SystemPlace { kRefused, kFirstUser, kLastUser };

  void RecogniseChatMl(const std::string& source);
  void RecogniseLlama3(const std::string& source);
  void RecogniseMistral(const std::string& source);
  void RecogniseGemma(const std::string& source);
  void RecogniseZephyr(const std::string& source);

  absl::Status CheckRoles(absl::Span<const ChatMessage> messages) const;
  std::string RenderChatMl(absl::Span<const ChatMessage> messages) const;
  std::string RenderLlama3(absl::Span<const ChatMessage> messages) const;
  std::string RenderMistral(absl::Span<const ChatMessage> messages, std::string_view eos) const;
  std::string RenderGemma(absl::Span<const ChatMessage> messages) const;
  std::string RenderZephyr(absl::Span<const ChatMessage> messages, std::string_view eos) const;
  // Content as the family shows it.
  std::string_view Shown(std::string_view content) const;

  ChatFamily family_ = ChatFamily::kUnknown;
  bool has_default_system_ = false;
  std::string default_system_;
  bool begins_with_bos_ = false;
  bool trims_content_ = false;
  bool has_tool_role_ = false;
  bool strips_thinking_ = false;    // ChatML of Qwen3: earlier answers lose their <think> part
  bool always_has_system_ = false;  // Llama 3.1: the system turn is there without a system message
  std::string system_preamble_;     // Llama 3.1: dates that open the system turn
  SystemPlace system_place_ = SystemPlace::kRefused;
  std::string user_prefix_, user_suffix_, assistant_prefix_,
      assistant_suffix_;  // Mistral, around BOS and EOS
};

}  // namespace verbatim::model
