// One hash over everything that decides what a tokenizer encodes and decodes.
#pragma once

#include <string>

#include "model/tokenizer_spec.h"

namespace verbatim::model {

// SHA-256 in hex. Names, chat template and the lists of BOS and EOS ids do not take part.
std::string TokenizerFingerprint(const TokenizerSpec& spec);

}  // namespace verbatim::model
