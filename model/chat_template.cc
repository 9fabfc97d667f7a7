// Rendering of chat messages, family by family.
#include "model/chat_template.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/utf8.h"

namespace verbatim::model {
namespace {

// White space as Python's str.strip(), which Jinja's trim filter calls, sees it.
bool IsPythonSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

std::string_view Trim(std::string_view text) {
  while (!text.empty()) {
    const Utf8Unit unit = NextUtf8Unit(text);
    if (unit.kind != Utf8Unit::Kind::kValid || !IsPythonSpace(unit.code_point)) break;
    text.remove_prefix(unit.length);
  }
  while (!text.empty()) {
    size_t last = text.size() - 1;
    while (last > 0 && (static_cast<uint8_t>(text[last]) & 0xC0) == 0x80) --last;
    const Utf8Unit unit = NextUtf8Unit(text.substr(last));
    if (unit.kind != Utf8Unit::Kind::kValid || last + unit.length != text.size() ||
        !IsPythonSpace(unit.code_point)) {
      break;
    }
    text.remove_suffix(unit.length);
  }
  return text;
}

std::string_view StripNewlines(std::string_view text) {
  while (!text.empty() && text.front() == '\n') text.remove_prefix(1);
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  return text;
}

std::string_view StripLeftNewlines(std::string_view text) {
  while (!text.empty() && text.front() == '\n') text.remove_prefix(1);
  return text;
}

// An answer of a thinking model, apart.
struct Answer {
  std::string_view reasoning;
  std::string_view content;
};

Answer SplitThinking(std::string_view content) {
  constexpr std::string_view kOpen = "<think>", kClose = "</think>";
  const size_t first = content.find(kClose);
  if (first == std::string_view::npos) return {"", content};
  std::string_view reasoning = content.substr(0, first);
  const size_t open = reasoning.rfind(kOpen);
  if (open != std::string_view::npos) reasoning.remove_prefix(open + kOpen.size());
  return {StripNewlines(reasoning),
          StripLeftNewlines(content.substr(content.rfind(kClose) + kClose.size()))};
}

absl::Status MessageError(size_t index, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("messages[", index, "]: ", what));
}

}  // namespace

absl::StatusOr<std::string> ChatTemplate::Render(absl::Span<const ChatMessage> messages,
                                                 const Tokenizer& tokenizer) const {
  if (family_ == ChatFamily::kUnknown) {
    return absl::FailedPreconditionError(
        "the model's chat template is missing or of a family that is not known; send the prompt as "
        "text");
  }
  if (messages.empty())
    return absl::InvalidArgumentError("messages: at least one message is needed");
  absl::Status status = CheckRoles(messages);
  if (!status.ok()) return status;
  std::string prompt;
  if (begins_with_bos_) {
    if (!tokenizer.bos_id()) {
      return absl::FailedPreconditionError(
          "the chat template begins with a BOS token, the tokenizer has none");
    }
    prompt = std::string(tokenizer.TokenBytes(*tokenizer.bos_id()));
  }
  std::string_view eos;
  if (family_ == ChatFamily::kMistral || family_ == ChatFamily::kZephyr) {
    if (tokenizer.eos_ids().empty()) {
      return absl::FailedPreconditionError(
          "the chat template has an EOS token, the tokenizer has none");
    }
    eos = tokenizer.TokenBytes(tokenizer.eos_ids()[0]);
  }
  switch (family_) {
    case ChatFamily::kChatMl:
      return prompt + RenderChatMl(messages);
    case ChatFamily::kLlama3:
      return prompt + RenderLlama3(messages);
    case ChatFamily::kMistral:
      return prompt + RenderMistral(messages, eos);
    case ChatFamily::kGemma:
      return prompt + RenderGemma(messages);
    case ChatFamily::kZephyr:
      return prompt + RenderZephyr(messages, eos);
    case ChatFamily::kUnknown:
      break;
  }
  return absl::InternalError("chat template family");
}

absl::Status ChatTemplate::CheckRoles(absl::Span<const ChatMessage> messages) const {
  const bool alternates = family_ == ChatFamily::kMistral || family_ == ChatFamily::kGemma;
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string& role = messages[i].role;
    if (role == "tool" && !has_tool_role_) {
      return MessageError(i, "this model's chat template has no role \"tool\"");
    }
    if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
      return MessageError(i, absl::StrCat("unknown role \"", role, "\""));
    }
    if (!alternates) continue;
    const bool has_system = messages[0].role == "system";
    if (role == "system") {
      if (i > 0) return MessageError(i, "only the first message may be a system message");
      if (system_place_ == SystemPlace::kRefused) {
        return MessageError(i, "this model's chat template has no role \"system\"");
      }
      if (messages.size() == 1)
        return MessageError(i, "a system message needs a user message after it");
    } else if ((role == "user") != ((i - has_system) % 2 == 0)) {
      return MessageError(
          i,
          absl::StrCat("role \"", role, "\" where user and assistant must alternate, user first"));
    }
  }
  return absl::OkStatus();
}

std::string_view ChatTemplate::Shown(std::string_view content) const {
  return trims_content_ ? Trim(content) : content;
}

std::string ChatTemplate::RenderChatMl(absl::Span<const ChatMessage> messages) const {
  std::string out;
  const auto append = [&](std::initializer_list<std::string_view> parts) {
    for (std::string_view part : parts) out.append(part);
  };
  if (has_default_system_ && messages[0].role != "system") {
    append({"<|im_start|>system\n", default_system_, "<|im_end|>\n"});
  }
  constexpr std::string_view kToolOpen = "<tool_response>", kToolClose = "</tool_response>";
  size_t last_query = messages.size() - 1;
  for (size_t i = messages.size(); i-- > 0;) {
    const std::string_view content = messages[i].content;
    if (messages[i].role == "user" &&
        !(content.starts_with(kToolOpen) && content.ends_with(kToolClose))) {
      last_query = i;
      break;
    }
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role == "tool") {  // neighbouring results share a turn of the user
      if (i == 0 || messages[i - 1].role != "tool") append({"<|im_start|>user"});
      append({"\n", kToolOpen, "\n", message.content, "\n", kToolClose});
      if (i + 1 == messages.size() || messages[i + 1].role != "tool") append({"<|im_end|>\n"});
      continue;
    }
    append({"<|im_start|>", message.role, "\n"});
    if (strips_thinking_ && message.role == "assistant") {
      const Answer answer = SplitThinking(message.content);
      if (i > last_query && (i + 1 == messages.size() || !answer.reasoning.empty())) {
        append(
            {"<think>\n", answer.reasoning, "\n</think>\n\n", StripLeftNewlines(answer.content)});
      } else {
        append({answer.content});
      }
    } else {
      append({Shown(message.content)});
    }
    append({"<|im_end|>\n"});
  }
  append({"<|im_start|>assistant\n"});
  return out;
}

std::string ChatTemplate::RenderLlama3(absl::Span<const ChatMessage> messages) const {
  std::string out;
  const auto turn = [&](std::string_view role, std::string_view before, std::string_view content) {
    for (std::string_view part :
         {std::string_view("<|start_header_id|>"), role, std::string_view("<|end_header_id|>\n\n"),
          before, content, std::string_view("<|eot_id|>")}) {
      out.append(part);
    }
  };
  size_t next = 0;
  if (always_has_system_) {
    const bool given = messages[0].role == "system";
    turn("system", system_preamble_, given ? Shown(messages[0].content) : std::string_view());
    next = given;
  }
  for (; next < messages.size(); ++next) {
    const ChatMessage& message = messages[next];
    // The result of a tool is shown as it came.
    if (message.role == "tool") {
      turn("ipython", "", message.content);
    } else {
      turn(message.role, "", Shown(message.content));
    }
  }
  return out + "<|start_header_id|>assistant<|end_header_id|>\n\n";
}

std::string ChatTemplate::RenderMistral(absl::Span<const ChatMessage> messages,
                                        std::string_view eos) const {
  std::string out;
  const bool has_system = messages[0].role == "system";
  const size_t first = has_system;
  const size_t system_index =
      system_place_ == SystemPlace::kFirstUser ? first : messages.size() - 1;
  for (size_t i = first; i < messages.size(); ++i) {
    if (messages[i].role == "user") {
      out += user_prefix_;
      if (has_system && i == system_index) out += messages[0].content + "\n\n";
      out += messages[i].content + user_suffix_;
    } else {
      out.append(assistant_prefix_)
          .append(Shown(messages[i].content))
          .append(eos)
          .append(assistant_suffix_);
    }
  }
  return out;
}

std::string ChatTemplate::RenderGemma(absl::Span<const ChatMessage> messages) const {
  std::string out;
  const size_t first = messages[0].role == "system";
  for (size_t i = first; i < messages.size(); ++i) {
    out += messages[i].role == "assistant" ? "<start_of_turn>model\n" : "<start_of_turn>user\n";
    if (first == 1 && i == 1) out += messages[0].content + "\n\n";
    out.append(Shown(messages[i].content)).append("<end_of_turn>\n");
  }
  return out + "<start_of_turn>model\n";
}

std::string ChatTemplate::RenderZephyr(absl::Span<const ChatMessage> messages,
                                       std::string_view eos) const {
  std::string out;
  for (const ChatMessage& message : messages) {
    out.append("<|")
        .append(message.role)
        .append("|>\n")
        .append(message.content)
        .append(eos)
        .append("\n");
  }
  return out + "<|assistant|>\n";
}

}  // namespace verbatim::model
