// Fibers over Boost.Context's assembly, with the annotations that sanitizers need.
#include "simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <boost/context/detail/fcontext.hpp>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#if defined(__SANITIZE_THREAD__)
extern "C" {  // of ThreadSanitizer's runtime, which has no header for them
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace simt {
namespace {

namespace context = boost::context::detail;

// A function that never returns would stay on ThreadSanitizer's shadow stack.
#if defined(__SANITIZE_THREAD__)
#define SIMT_UNINSTRUMENTED __attribute__((no_sanitize("thread")))
#else
#define SIMT_UNINSTRUMENTED
#endif

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kStackBytes = 256 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif

}  // namespace

struct Fiber::State {
  std::byte* memory = nullptr;  // guard page, then the stack
  size_t guard_bytes = 0;
  context::fcontext_t own = nullptr;    // where the fiber is suspended
  context::fcontext_t outer = nullptr;  // where its resumer waits
  Entry entry = nullptr;
  void* argument = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  void* own_fake_stack = nullptr;
  void* outer_fake_stack = nullptr;
  const void* outer_bottom = nullptr;
  size_t outer_bytes = 0;
#endif
#if defined(__SANITIZE_THREAD__)
  void* own_tsan = nullptr;
  void* outer_tsan = nullptr;
#endif

  std::byte* stack() const { return memory + guard_bytes; }

  SIMT_UNINSTRUMENTED static void Trampoline(context::transfer_t from) {
    State* state = static_cast<State*>(from.data);
    state->outer = from.fctx;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &state->outer_bottom, &state->outer_bytes);
#endif
    state->entry(state->argument);
    std::abort();  // the entry did not end by suspending
  }
};

Fiber::Fiber() : state_(std::make_unique<State>()) {
  state_->guard_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, state_->guard_bytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, state_->guard_bytes, PROT_NONE) != 0) std::abort();
  state_->memory = static_cast<std::byte*>(memory);
#if defined(__SANITIZE_THREAD__)
  state_->own_tsan = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if defined(__SANITIZE_THREAD__)
  __tsan_destroy_fiber(state_->own_tsan);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(state_->stack(), kStackBytes);
#endif
  munmap(state_->memory, state_->guard_bytes + kStackBytes);
}

void Fiber::Start(Entry entry, void* argument) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(state_->stack(), kStackBytes);
  state_->own_fake_stack = nullptr;
#endif
  state_->entry = entry;
  state_->argument = argument;
  state_->own =
      context::make_fcontext(state_->stack() + kStackBytes, kStackBytes, State::Trampoline);
}

SIMT_UNINSTRUMENTED void Fiber::Resume() {
  State* state = state_.get();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&state->outer_fake_stack, state->stack(), kStackBytes);
#endif
#if defined(__SANITIZE_THREAD__)
  state->outer_tsan = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(state->own_tsan, __tsan_switch_to_fiber_no_sync);
#endif
  const context::transfer_t back = context::jump_fcontext(state->own, state);
  state->own = back.fctx;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(state->outer_fake_stack, nullptr, nullptr);
#endif
  // The resumer sees what the fiber did; fibers do not see each other through it.
  Acquire(state);
}

SIMT_UNINSTRUMENTED void Fiber::Suspend() {
  State* state = state_.get();
  Release(state);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&state->own_fake_stack, state->outer_bottom, state->outer_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(state->outer_tsan, __tsan_switch_to_fiber_no_sync);
#endif
  const context::transfer_t again = context::jump_fcontext(state->outer, nullptr);
  state->outer = again.fctx;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(state->own_fake_stack, &state->outer_bottom, &state->outer_bytes);
#endif
}

void Release([[maybe_unused]] void* tag) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(tag);
#endif
}
void Acquire([[maybe_unused]] void* tag) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(tag);
#endif
}

void BeginUnchecked() {
#if defined(__SANITIZE_THREAD__)
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
}
void EndUnchecked() {
#if defined(__SANITIZE_THREAD__)
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
}

}  // namespace simt
