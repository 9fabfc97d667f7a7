// An explanation as text, as JSON and as a page.
#pragma once

#include <string>

#include "model/tokenizer.h"
#include "nlohmann/json.hpp"
#include "replay/explanation.h"

namespace verbatim::replay {

std::string ExplanationText(const Explanation& explanation);

// Token texts come from the tokenizer.
nlohmann::json ExplanationJson(const Explanation& explanation, const model::Tokenizer& tokenizer);

// One HTML file that opens offline; `data` is ExplanationJson's.
std::string ExplanationPage(const nlohmann::json& data);

}  // namespace verbatim::replay
