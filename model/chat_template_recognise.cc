// Which family and variant a Jinja chat template is. Each test looks for the expressions that
// decide the output; a template that has a family's marks but not these expressions stays unknown
// rather than being rendered almost right. Source: the chat_template fields that the families'
// publishers ship in tokenizer_config.json.
#include <string>
#include <string_view>
#include <vector>

#include "model/chat_template.h"
#include "model/chat_template_source.h"

namespace verbatim::model {
namespace {

bool Has(const std::string& source, std::string_view part) {
  return source.find(part) != std::string::npos;
}

// The text between two marks, where the first mark is followed by the second on a way without a
// quote; false if nowhere.
bool Between(const std::string& source, std::string_view before, std::string_view after,
             std::string* text) {
  for (size_t pos = 0; (pos = source.find(before, pos)) != std::string::npos;) {
    pos += before.size();
    const size_t end = source.find(after, pos);
    if (end == std::string::npos) return false;
    if (source.find("'+", pos) > end && source.find("'}}", pos) >= end) {
      *text = source.substr(pos, end - pos);
      return true;
    }
  }
  return false;
}

// What is output as it stands, outside all tags.
bool HasPlainText(const std::string& source) {
  size_t pos = 0;
  while (pos < source.size()) {
    const std::string_view open = std::string_view(source).substr(pos, 2);
    if (open != "{{" && open != "{%") return true;
    // A literal may hold braces, but no chat template's literal holds these two.
    const size_t close = source.find(open == "{{" ? "}}" : "%}", pos);
    if (close == std::string::npos) return true;
    pos = close + 2;
  }
  return false;
}

}  // namespace

ChatTemplate ChatTemplate::Recognise(std::string_view jinja_source) {
  ChatTemplate result;
  const std::string source = CompactTemplate(jinja_source);
  if (Has(source, "<|im_start|>") && Has(source, "<|im_end|>")) {
    result.RecogniseChatMl(source);
  } else if (Has(source, "<|start_header_id|>") && Has(source, "<|eot_id|>")) {
    result.RecogniseLlama3(source);
  } else if (Has(source, "<start_of_turn>") && Has(source, "<end_of_turn>")) {
    result.RecogniseGemma(source);
  } else if (Has(source, "[INST]") && Has(source, "[/INST]")) {
    result.RecogniseMistral(source);
  } else if (Has(source, "<|user|>") && Has(source, "<|assistant|>") && Has(source, "eos_token")) {
    result.RecogniseZephyr(source);
  }
  return result;
}

void ChatTemplate::RecogniseChatMl(const std::string& source) {
  // Messages that are changed, refused or dated in ways of their own.
  for (std::string_view foreign :
       {"raise_exception", "strftime_now", "default_system", "setsystem_message='"}) {
    if (Has(source, foreign)) return;
  }
  const bool plain =
      Has(source, "'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>\n'");
  const bool trimmed =
      Has(source, "'<|im_start|>'+message['role']+'\n'+message['content']|trim+'<|im_end|>\n'");
  const bool thinking =
      Has(source, "'<|im_start|>'+message['role']+'\n'+content+'<|im_end|>\n'") &&
      Has(source, ".split('</think>')[-1].lstrip('\n')") &&
      Has(source,
          "'\n<think>\n'+reasoning_content.strip('\n')+'\n</think>\n\n'+content.lstrip('\n')");
  if (plain + trimmed + thinking != 1 || HasPlainText(source)) return;
  if (!Has(source, "{{'<|im_start|>assistant\n'}}")) return;
  begins_with_bos_ = Has(source, "{{bos_token}}");
  if (Has(source, "bos_token") && !begins_with_bos_) return;
  has_default_system_ =
      Between(source, "{{'<|im_start|>system\n", "<|im_end|>\n'}}", &default_system_);
  if (!has_default_system_ && Has(source, "messages[0]['role']!='system'")) return;
  trims_content_ = trimmed;
  strips_thinking_ = thinking;
  has_tool_role_ = Has(source, "'\n<tool_response>\n'") && Has(source, "'\n</tool_response>'");
  family_ = ChatFamily::kChatMl;
}

void ChatTemplate::RecogniseLlama3(const std::string& source) {
  const std::string head =
      "'<|start_header_id|>'+message['role']+'<|end_header_id|>\n\n'+message['content']";
  const bool plain = Has(source, head + "+'<|eot_id|>'");
  const bool trimmed = Has(source, head + "|trim+'<|eot_id|>'");
  if (plain == trimmed || HasPlainText(source)) return;
  if (!Has(source, "{{'<|start_header_id|>assistant<|end_header_id|>\n\n'}}")) return;
  always_has_system_ = Has(source, "{{'<|start_header_id|>system<|end_header_id|>\n\n'}}");
  if (always_has_system_) {
    if (!Has(source, "{{system_message}}") || !Has(source, "setsystem_message=''")) return;
    std::string cutoff, date;
    if (Between(source, "{{'Cutting Knowledge Date: ", "\n'}}", &cutoff)) {
      system_preamble_ = "Cutting Knowledge Date: " + cutoff + "\n";
    }
    if (Has(source, "'Today Date: '")) {
      // The date that the template falls back to. Today's would make the prompt depend on the
      // clock.
      if (!Has(source, "{{'Today Date: '+date_string+'\n\n'}}") ||
          !Between(source, "setdate_string='", "'%}", &date)) {
        return;
      }
      system_preamble_ += "Today Date: " + date + "\n\n";
    }
  } else if (Has(source, "system_message")) {
    return;
  }
  begins_with_bos_ = Has(source, "bos_token");
  trims_content_ = trimmed;
  // Where a tool's result is written as JSON, a text is too; that is not done here.
  has_tool_role_ =
      Has(source, "'<|start_header_id|>ipython<|end_header_id|>\n\n'") && !Has(source, "|tojson");
  family_ = ChatFamily::kLlama3;
}

void ChatTemplate::RecogniseMistral(const std::string& source) {
  for (std::string_view foreign : {"<<SYS>>", "[SYSTEM_PROMPT]"}) {
    if (Has(source, foreign)) return;
  }
  if (HasPlainText(source)) return;
  // Every way in which a turn of the user is written must have the same spaces around its marks.
  int variants = 0;
  for (std::string_view before : {"", " "}) {
    for (std::string_view after : {"", " "}) {
      const std::string prefix = std::string(before) + "[INST]" + std::string(after);
      if (!Has(source, "'" + prefix + "'+")) continue;
      for (std::string_view space : {"", " "}) {
        const std::string suffix = std::string(space) + "[/INST]";
        if (!Has(source, "'" + prefix + "'+message['content']+'" + suffix + "'")) continue;
        ++variants;
        user_prefix_ = prefix;
        user_suffix_ = suffix;
      }
    }
  }
  if (variants != 1) return;
  variants = 0;
  for (std::string_view before : {"", "' '+"}) {
    for (std::string_view trim : {"", "|trim"}) {
      for (std::string_view after : {"", "+' '"}) {
        const std::string expression = "{{" + std::string(before) + "message['content']" +
                                       std::string(trim) + "+eos_token" + std::string(after) + "}}";
        if (!Has(source, expression)) continue;
        ++variants;
        assistant_prefix_ = before.empty() ? "" : " ";
        assistant_suffix_ = after.empty() ? "" : " ";
        trims_content_ = !trim.empty();
      }
    }
  }
  if (variants != 1) return;
  if (Has(source, "system_message")) {
    const std::string with_system =
        "'" + user_prefix_ + "'+system_message+'\n\n'+message['content']+'" + user_suffix_ + "'";
    const bool first = Has(source, "loop.firstandsystem_messageisdefined");
    const bool last = Has(source, "loop.lastandsystem_messageisdefined");
    if (!Has(source, with_system) || first == last) return;
    system_place_ = first ? SystemPlace::kFirstUser : SystemPlace::kLastUser;
  }
  begins_with_bos_ = Has(source, "bos_token");
  family_ = ChatFamily::kMistral;
}

void ChatTemplate::RecogniseGemma(const std::string& source) {
  if (HasPlainText(source) || !Has(source, "{{'<start_of_turn>model\n'}}")) return;
  const std::string head = "'<start_of_turn>'+role+'\n'+";
  const bool one_piece = Has(source, head + "message['content']|trim+'<end_of_turn>\n'");
  const bool prefixed = Has(source, head + "(first_user_prefixifloop.firstelse'')") &&
                        Has(source, "{{message['content']|trim}}") &&
                        Has(source, "{{'<end_of_turn>\n'}}") &&
                        Has(source, "first_user_prefix=messages[0]['content']+'\n\n'");
  if (one_piece == prefixed) return;
  system_place_ = prefixed ? SystemPlace::kFirstUser : SystemPlace::kRefused;
  trims_content_ = true;
  begins_with_bos_ = Has(source, "bos_token");
  family_ = ChatFamily::kGemma;
}

void ChatTemplate::RecogniseZephyr(const std::string& source) {
  // The line break after a turn stands outside the tags or is part of the expression.
  for (const std::string& end : {std::string("+eos_token}}\n"), std::string("+eos_token+'\n'}}")}) {
    bool all = true;
    for (const std::string role : {"system", "user", "assistant"}) {
      all = all && Has(source, "{{'<|" + role + "|>\n'+message['content']" + end);
    }
    const std::string header =
        end.back() == '\n' ? "{{'<|assistant|>'}}\n" : "{{'<|assistant|>\n'}}";
    if (all && Has(source, header)) family_ = ChatFamily::kZephyr;
  }
  begins_with_bos_ = Has(source, "bos_token");
}

}  // namespace verbatim::model
