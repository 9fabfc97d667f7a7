// Tests of the flag parser.
#include "flags/flag_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace verbatim::flags {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Values {
  int64_t count = 7;
  bool cache = true;
  double rate = 1.5;
  std::string name = "x";
  std::string colour = "red";
  std::optional<uint64_t> seed;
};

FlagSet Declare(Values* values) {
  FlagSet flags("tool [flags]", "Does things.");
  flags.Group("Numbers");
  flags.Add("max-count", &values->count, "how many");
  flags.Add("rate", &values->rate, "how fast");
  flags.Group("Others");
  flags.Add("enable-cache", &values->cache, "reuse results");
  flags.Add("name", &values->name, "what to call it");
  flags.Add("seed", &values->seed, "where to start");
  flags.AddCustom(
      "colour", "red or blue",
      [values](const std::string& text) {
        if (text != "red" && text != "blue") {
          return absl::InvalidArgumentError("neither red nor blue");
        }
        values->colour = text;
        return absl::OkStatus();
      },
      [values] { return values->colour; });
  return flags;
}

absl::StatusOr<std::vector<std::string>> ParseWith(FlagSet& flags, std::vector<std::string> args) {
  args.insert(args.begin(), "tool");
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  return flags.Parse(static_cast<int>(argv.size()), argv.data());
}

TEST(FlagSet, TakesDashesAndUnderscoresAndBothValueForms) {
  Values values;
  FlagSet flags = Declare(&values);
  auto rest = ParseWith(flags, {"--max_count=3", "--rate", "2.25", "file", "--name=a=b", "--seed",
                                "18446744073709551615", "--", "--rate"});
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_THAT(*rest, ElementsAre("file", "--rate"));
  EXPECT_EQ(values.count, 3);
  EXPECT_EQ(values.rate, 2.25);
  EXPECT_EQ(values.name, "a=b");
  EXPECT_EQ(values.seed, 18446744073709551615u);
}

TEST(FlagSet, BooleansCanBeSetAndUnset) {
  for (const auto& [arg, expected] :
       std::vector<std::pair<std::string, bool>>{{"--enable-cache", true},
                                                 {"--no-enable-cache", false},
                                                 {"--no_enable_cache", false},
                                                 {"--enable_cache=false", false},
                                                 {"--enable-cache=1", true}}) {
    Values values;
    values.cache = !expected;
    FlagSet flags = Declare(&values);
    ASSERT_TRUE(ParseWith(flags, {arg}).ok()) << arg;
    EXPECT_EQ(values.cache, expected) << arg;
  }
}

TEST(FlagSet, ListsTakeAllValuesUpToTheNextFlag) {
  Values values;
  std::vector<std::string> list;
  FlagSet flags = Declare(&values);
  flags.AddList("goals", &list, "what to reach");
  auto rest = ParseWith(flags, {"file", "--goals", "a:1", "b:2", "--max-count=3", "--goals=c:3",
                                "x", "--goals", "d:4"});
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_THAT(list, ElementsAre("a:1", "b:2", "c:3", "d:4"));
  EXPECT_THAT(*rest, ElementsAre("file", "x"));
  EXPECT_EQ(values.count, 3);
  EXPECT_EQ(flags.Values().at("goals"), "a:1 b:2 c:3 d:4");
}

TEST(FlagSet, DefaultsStay) {
  Values values;
  FlagSet flags = Declare(&values);
  auto rest = ParseWith(flags, {});
  ASSERT_TRUE(rest.ok());
  EXPECT_THAT(*rest, IsEmpty());
  EXPECT_EQ(values.count, 7);
  EXPECT_FALSE(values.seed.has_value());
}

TEST(FlagSet, ValuesAreThoseInForce) {
  Values values;
  FlagSet flags = Declare(&values);
  ASSERT_TRUE(ParseWith(flags, {"--colour=blue", "--no-enable-cache"}).ok());
  const std::map<std::string, std::string> expected = {
      {"max-count", "7"}, {"rate", "1.5"}, {"enable-cache", "false"},
      {"name", "x"},      {"seed", ""},    {"colour", "blue"}};
  EXPECT_EQ(flags.Values(), expected);
}

TEST(FlagSet, ErrorsNameTheFlag) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--max-count=many"}, "--max-count: 'many' is not a valid integer"},
      {{"--max_count=99999999999999999999"}, "--max-count: "},
      {{"--max-count"}, "--max-count: needs a value"},
      {{"--rate="}, "--rate: '' is not a valid number"},
      {{"--seed=-1"}, "--seed: '-1' is not a valid non-negative integer"},
      {{"--enable-cache=perhaps"}, "--enable-cache: 'perhaps' is not a valid truth value"},
      {{"--colour=green"}, "--colour: neither red nor blue"},
      {{"--size=1"}, "--size: unknown flag"},
      {{"--no-name"}, "--no-name: unknown flag"},
      {{"--no-enable-cache=true"}, "--no-enable-cache: takes no value"},
      {{"-x"}, "-x: unknown flag"},
  };
  for (const auto& [args, message] : cases) {
    Values values;
    FlagSet flags = Declare(&values);
    auto result = ParseWith(flags, args);
    ASSERT_FALSE(result.ok()) << args[0];
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(message));
  }
}

TEST(FlagSet, HelpListsEveryFlagWithItsDefault) {
  Values values;
  FlagSet flags = Declare(&values);
  ASSERT_TRUE(ParseWith(flags, {"--max-count=1", "--help", "--nonsense"}).ok());
  EXPECT_TRUE(flags.help_requested());
  const std::string help = flags.Help();
  EXPECT_THAT(help, HasSubstr("usage: tool [flags]\n"));
  EXPECT_THAT(help,
              HasSubstr("\nNumbers:\n  --max-count                   how many (default 7)\n"));
  EXPECT_THAT(help, HasSubstr("--[no-]enable-cache           reuse results (default true)"));
  EXPECT_THAT(help, HasSubstr("--seed                        where to start\n"));
}

}  // namespace
}  // namespace verbatim::flags
