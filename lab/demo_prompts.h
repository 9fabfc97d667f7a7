// What the demonstration asks.
#pragma once

#include <string>
#include <vector>

namespace verbatim::lab {

// Sixteen prompts of varied kind; the first is the weather sentence.
std::vector<std::string> DemoPrompts();

}  // namespace verbatim::lab
