// Result files of commands.
#pragma once

#include "report/files.h"

namespace verbatim::client {

using report::AppendLine;
using report::WriteFile;

}  // namespace verbatim::client
