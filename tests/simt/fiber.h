// Fibers on pooled stacks, known to AddressSanitizer and ThreadSanitizer.
#pragma once

#include <cstddef>
#include <memory>

namespace simt {

// One stack and the context suspended on it. A fiber may be abandoned while suspended and started
// again: what was on its stack is then simply forgotten, no destructor runs.
class Fiber {
 public:
  using Entry = void (*)(void* argument);

  // The stack has a guard page below it. Aborts when memory for it is refused.
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Prepares entry(argument) to run at the next Resume. entry must end by calling Suspend and must
  // not be resumed after that.
  void Start(Entry entry, void* argument);
  // Runs the fiber until it calls Suspend. Called outside of fibers only.
  void Resume();
  // Goes back to the caller of Resume. Called on the fiber itself.
  void Suspend();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Tells ThreadSanitizer that what came before Release(tag) happens before what follows
// Acquire(tag). Nothing without it.
void Release(void* tag);
void Acquire(void* tag);
// Between these, ThreadSanitizer overlooks what the fiber reads and writes.
void BeginUnchecked();
void EndUnchecked();

}  // namespace simt
