// `verbatim verify`: checks the receipts of answers.
#pragma once

namespace verbatim::verify {

// Exit status: 0 every receipt is verified, 1 one is refused, 2 wrong usage, 3 it could not be
// checked (no such file, no server, a full queue).
int RunVerify(int argc, char** argv);

}  // namespace verbatim::verify
