// The prompt of a command line: where it comes from, and whether it is sent as a chat.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/client.h"
#include "flags/flag_set.h"

namespace verbatim::client {

struct PromptFlags {
  std::string prompt;
  bool chat = false, raw = false;
  std::string system;

  // --chat, --raw and --system.
  void Register(flags::FlagSet* flags);
  // Checks the flags and takes the prompt from the one positional argument; "-" stands for standard
  // input.
  absl::Status Take(const std::vector<std::string>& positional);
  // Puts the prompt into `request`: as asked for, else as a chat where the model has a template.
  absl::Status Fill(Client* client, v1::GenerateRequest* request) const;
};

// Sets the prompt of `request`: as one user message (after `system`, if any) or as text.
void SetPrompt(const std::string& prompt, const std::string& system, bool chat,
               v1::GenerateRequest* request);

}  // namespace verbatim::client
