// Parsing and help text of a subcommand's flags.
#include "flags/flag_set.h"

#include <algorithm>

#include "absl/strings/str_join.h"

namespace verbatim::flags {
namespace {

constexpr size_t kHelpColumn = 32;
constexpr size_t kHelpWidth = 100;

// Appends `text` word by word from column `indent`, breaking lines at kHelpWidth.
void AppendWrapped(const std::string& text, size_t indent, size_t column, std::string* out) {
  size_t begin = 0;
  bool first = true;
  while (begin < text.size()) {
    size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (!first && column + 1 + word.size() > kHelpWidth) {
      out->append("\n").append(std::string(indent, ' '));
      column = indent;
      first = true;
    }
    if (!first) {
      out->push_back(' ');
      ++column;
    }
    out->append(word);
    column += word.size();
    first = false;
    begin = end + 1;
  }
  out->push_back('\n');
}

}  // namespace

void FlagSet::Group(std::string title) { next_group_ = std::move(title); }

void FlagSet::AddEntry(std::string name, bool is_bool, std::string help, Setter setter,
                       Getter getter) {
  std::string default_text = getter();
  entries_.push_back({std::move(name), std::move(default_text), std::move(help), is_bool,
                      /*is_list=*/false, std::move(setter), std::move(getter),
                      std::exchange(next_group_, "")});
}

void FlagSet::AddList(std::string name, std::vector<std::string>* values, std::string help) {
  AddCustom(
      std::move(name), std::move(help),
      [values](const std::string& text) {
        values->push_back(text);
        return absl::OkStatus();
      },
      [values] { return absl::StrJoin(*values, " "); });
  entries_.back().is_list = true;
}

std::map<std::string, std::string> FlagSet::Values() const {
  std::map<std::string, std::string> values;
  for (const Entry& entry : entries_) values[entry.name] = entry.getter();
  return values;
}

const FlagSet::Entry* FlagSet::Find(const std::string& name) const {
  for (const Entry& entry : entries_) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

absl::StatusOr<std::vector<std::string>> FlagSet::Parse(int argc, char* const* argv) {
  std::vector<std::string> positional;
  bool flags_ended = false;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (flags_ended || arg.size() < 2 || arg[0] != '-') {
      positional.push_back(arg);
      continue;
    }
    if (arg == "--") {
      flags_ended = true;
      continue;
    }
    if (arg == "-h" || arg == "--help") {
      help_requested_ = true;
      return positional;
    }
    if (arg[1] != '-') {
      return absl::InvalidArgumentError(absl::StrCat(arg, ": unknown flag; see --help"));
    }
    const size_t equals = arg.find('=');
    std::string name = arg.substr(2, equals == std::string::npos ? equals : equals - 2);
    std::replace(name.begin(), name.end(), '_', '-');

    const Entry* entry = Find(name);
    bool negated = false;
    if (entry == nullptr && name.rfind("no-", 0) == 0) {
      entry = Find(name.substr(3));
      negated = entry != nullptr && entry->is_bool;
      if (!negated) entry = nullptr;
    }
    if (entry == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("--", name, ": unknown flag; see --help"));
    }
    std::string value;
    if (negated) {
      if (equals != std::string::npos) {
        return absl::InvalidArgumentError(absl::StrCat("--", name, ": takes no value"));
      }
      value = "false";
    } else if (equals != std::string::npos) {
      value = arg.substr(equals + 1);
    } else if (entry->is_bool) {
      value = "true";
    } else if (i + 1 < argc) {
      value = argv[++i];
    } else {
      return absl::InvalidArgumentError(absl::StrCat("--", name, ": needs a value"));
    }
    if (absl::Status status = entry->setter(value); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat("--", entry->name, ": ", status.message()));
    }
    while (entry->is_list && equals == std::string::npos && i + 1 < argc && argv[i + 1][0] != '-') {
      if (absl::Status status = entry->setter(argv[++i]); !status.ok()) return status;
    }
  }
  return positional;
}

std::string FlagSet::Help() const {
  std::string out = absl::StrCat("usage: ", usage_, "\n\n");
  AppendWrapped(description_, 0, 0, &out);
  for (const Entry& entry : entries_) {
    if (!entry.group.empty()) absl::StrAppend(&out, "\n", entry.group, ":\n");
    std::string line = absl::StrCat("  --", entry.is_bool ? "[no-]" : "", entry.name);
    if (line.size() + 2 > kHelpColumn) {
      line.append("\n").append(std::string(kHelpColumn, ' '));
    } else {
      line.resize(kHelpColumn, ' ');
    }
    out.append(line);
    std::string help = entry.help;
    if (!entry.default_text.empty()) absl::StrAppend(&help, " (default ", entry.default_text, ")");
    AppendWrapped(help, kHelpColumn, kHelpColumn, &out);
  }
  return out;
}

}  // namespace verbatim::flags
