// A Jinja chat template reduced to a form in which two ways to write the same thing are mostly
// equal.
#pragma once

#include <string>
#include <string_view>

namespace verbatim::model {

// The template's tags in order, as "{{...}}" and "{%...%}" without white space outside of string
// literals, and between them the text that is output as it stands. Jinja's white-space control
// ("-") and the trim_blocks and lstrip_blocks settings of Hugging Face's environment are applied,
// comments dropped. Literals are in single quotes with escapes resolved, literals joined by "+" are
// one, message.role is message['role']. Empty for a malformed source.
std::string CompactTemplate(std::string_view source);

}  // namespace verbatim::model
