// The flags of one subcommand: declared by name, parsed from the command line, listed by --help.
//
// Abseil's flags are one global table: two subcommands of one binary could not both have --model,
// and every subcommand would accept the flags of all others. The values themselves are parsed by
// Abseil.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/flags/marshalling.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace verbatim::flags {

// Names are written with dashes; the command line may use dashes or underscores. A flag takes its
// value as --name=value or --name value; a boolean flag also as --name and --no-name. The last
// occurrence wins; "--" ends the flags.
class FlagSet {
 public:
  // Reads the text of a value; the message of an error need not name the flag.
  using Setter = std::function<absl::Status(const std::string& text)>;

  using Getter = std::function<std::string()>;

  // `usage` is the first line of the help, `description` the paragraph below it.
  FlagSet(std::string usage, std::string description)
      : usage_(std::move(usage)), description_(std::move(description)) {}

  // Starts a group of flags in the help.
  void Group(std::string title);

  // A flag whose value any Abseil flag type could hold; its present value is the default.
  template <typename T>
  void Add(std::string name, T* value, std::string help) {
    AddEntry(
        std::move(name), std::is_same_v<T, bool>, std::move(help),
        [value](const std::string& text) { return ParseAs<T>(text, value); },
        [value] { return absl::UnparseFlag(*value); });
  }
  // A flag that may be absent.
  template <typename T>
  void Add(std::string name, std::optional<T>* value, std::string help) {
    AddEntry(
        std::move(name), false, std::move(help),
        [value](const std::string& text) { return ParseAs<T>(text, &value->emplace()); },
        [value] { return value->has_value() ? absl::UnparseFlag(**value) : std::string(); });
  }
  // A flag with its own syntax; `getter` writes the present value as `setter` would read it.
  void AddCustom(std::string name, std::string help, Setter setter, Getter getter) {
    AddEntry(std::move(name), false, std::move(help), std::move(setter), std::move(getter));
  }

  // A flag with one or more values: the arguments up to the next one that begins with a dash, or
  // one value as --name=value. May be given several times; what it holds grows.
  void AddList(std::string name, std::vector<std::string>* values, std::string help);

  // Sets the values and returns the positional arguments; argv[0] is skipped. INVALID_ARGUMENT
  // naming the flag: unknown, without a value, or with a value that does not parse.
  absl::StatusOr<std::vector<std::string>> Parse(int argc, char* const* argv);

  // --help or -h was given; Parse then stops and returns OK.
  bool help_requested() const { return help_requested_; }
  std::string Help() const;
  // The present value of every flag, by name; empty for a flag that is absent.
  std::map<std::string, std::string> Values() const;

 private:
  struct Entry {
    std::string name, default_text, help;
    bool is_bool = false;
    bool is_list = false;
    Setter setter;
    Getter getter;
    std::string group;  // title that stands before this entry
  };

  template <typename T>
  static absl::Status ParseAs(const std::string& text, T* value) {
    std::string error;
    if (absl::ParseFlag(absl::string_view(text), value, &error)) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' is not a valid ", TypeName<T>(),
                                                   error.empty() ? "" : ": ", error));
  }
  template <typename T>
  static const char* TypeName() {
    if constexpr (std::is_same_v<T, bool>) return "truth value (true or false)";
    if constexpr (std::is_integral_v<T> && std::is_signed_v<T>) return "integer";
    if constexpr (std::is_integral_v<T>) return "non-negative integer";
    if constexpr (std::is_floating_point_v<T>) return "number";
    return "value";
  }

  void AddEntry(std::string name, bool is_bool, std::string help, Setter setter, Getter getter);
  const Entry* Find(const std::string& name) const;

  std::string usage_, description_, next_group_;
  std::vector<Entry> entries_;
  bool help_requested_ = false;
};

}  // namespace verbatim::flags
