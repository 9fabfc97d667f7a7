// The prompts of the demonstration.
#include "lab/demo_prompts.h"

#include <iterator>

namespace verbatim::lab {
namespace {

constexpr const char* kPrompts[] = {
    "Continue the sentence. The sentence: The weather was...",
    "Why is the sky blue?",
    "What is the capital of Australia?",
    "List five things to pack for a day in the mountains.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "Write a SQL query that counts the orders of each customer.",
    "What is 17 times 24? Show your steps.",
    "A train travels 180 km in 2.5 hours. What is its average speed?",
    "Tell a short story about a lighthouse keeper and a lost dog.",
    "Write a haiku about the first snow of the year.",
    "Explain to a child how a refrigerator works.",
    "Translate into French: The library opens at nine in the morning.",
    "Summarise in one sentence why the Roman Republic became an empire.",
    "Give advice to someone who starts learning the piano at forty.",
    "Invent a name and a slogan for a bakery on the moon.",
    "What would happen if the Earth had two moons?",
};

}  // namespace

std::vector<std::string> DemoPrompts() { return {std::begin(kPrompts), std::end(kPrompts)}; }

}  // namespace verbatim::lab
