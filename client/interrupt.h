// Ctrl-C as a flag that long-running commands look at.
#pragma once

namespace verbatim::client {

// From now on SIGINT and SIGTERM set the flag; a second one ends the process at once.
void CatchInterrupts();
bool Interrupted();

}  // namespace verbatim::client
