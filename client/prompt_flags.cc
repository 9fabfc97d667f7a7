// Reading a prompt and putting it into a request.
#include "client/prompt_flags.h"

#include <iostream>
#include <iterator>

#include "client/command.h"

namespace verbatim::client {

void PromptFlags::Register(flags::FlagSet* flags) {
  flags->Add("chat", &chat,
             "send PROMPT as a chat message; default where the model has a template");
  flags->Add("raw", &raw, "send PROMPT as plain text");
  flags->Add("system", &system, "system message of the chat");
}

absl::Status PromptFlags::Take(const std::vector<std::string>& positional) {
  if (positional.size() != 1) {
    return absl::InvalidArgumentError(
        "needs exactly one PROMPT; quote it if it has spaces (see --help)");
  }
  if (chat && raw) return absl::InvalidArgumentError("--chat and --raw exclude each other");
  if (raw && !system.empty()) return BadFlag("system", "has no place in --raw text");
  prompt = positional.front();
  if (prompt == "-") {
    prompt.assign(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  }
  return absl::OkStatus();
}

absl::Status PromptFlags::Fill(Client* client, v1::GenerateRequest* request) const {
  bool as_chat = chat || !system.empty();
  if (!as_chat && !raw) {
    const auto model = client->GetModelInfo();
    if (!model.ok()) return model.status();
    as_chat = model->chat_family() != "unknown";
  }
  SetPrompt(prompt, system, as_chat, request);
  return absl::OkStatus();
}

void SetPrompt(const std::string& prompt, const std::string& system, bool chat,
               v1::GenerateRequest* request) {
  if (!chat) {
    request->set_text(prompt);
    return;
  }
  if (!system.empty()) {
    v1::ChatMessage* message = request->mutable_chat()->add_messages();
    message->set_role("system");
    message->set_content(system);
  }
  v1::ChatMessage* message = request->mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(prompt);
}

}  // namespace verbatim::client
