// Questions of several kinds, each asked of many subjects.
#include "lab/fragility_prompts.h"

#include <algorithm>
#include <iterator>
#include <random>

#include "absl/strings/str_replace.h"

namespace verbatim::lab {
namespace {

constexpr const char* kForms[] = {
    "What is special about $?",
    "Write two sentences about $.",
    "List three facts about $.",
    "Tell a very short story in which $ plays a part.",
    "Explain $ to a child of six.",
    "Why do some people dislike $?",
    "Write a short poem about $.",
    "What would the world be like without $?",
    "Give one argument for and one against $.",
    "Invent a slogan for $.",
    "How has $ changed in the last hundred years?",
    "Write the first line of a letter that mentions $.",
};

constexpr const char* kSubjects[] = {
    "bread",
    "the moon",
    "chess",
    "a thunderstorm",
    "public transport",
    "the violin",
    "honey bees",
    "winter",
    "a lighthouse",
    "coffee",
    "the desert",
    "school uniforms",
    "a bicycle",
    "old maps",
    "the Pacific Ocean",
    "garlic",
    "a library card",
    "football",
    "the alphabet",
    "volcanoes",
    "a wooden house",
    "mathematics",
    "salt",
    "night trains",
    "the colour blue",
    "penguins",
    "a broken clock",
    "online shopping",
    "mountains",
    "the number seven",
    "tea",
    "a village well",
    "satellites",
    "gardening",
    "the printing press",
    "wolves",
    "a paper boat",
    "city parks",
    "the Nile",
    "handwriting",
    "cheese",
    "a silent film",
    "wind power",
    "dreams",
    "the piano",
    "mushrooms",
    "a suspension bridge",
    "birthdays",
    "glass",
    "the common cold",
};
static_assert(std::size(kForms) * std::size(kSubjects) == kMostFragilityPrompts);

}  // namespace

std::vector<std::string> FragilityPrompts(int64_t count, uint64_t seed) {
  std::vector<std::string> prompts;
  for (const char* form : kForms) {
    for (const char* subject : kSubjects) {
      prompts.push_back(absl::StrReplaceAll(form, {{"$", subject}}));
    }
  }
  std::mt19937_64 random(seed);
  std::shuffle(prompts.begin(), prompts.end(), random);
  prompts.resize(static_cast<size_t>(std::min(count, kMostFragilityPrompts)));
  return prompts;
}

}  // namespace verbatim::lab
