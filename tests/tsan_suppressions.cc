// What ThreadSanitizer leaves out, linked into every test of the `tsan` build.

// The system's oneDNN is not built with ThreadSanitizer. It hands primitives from its cache to
// several threads and orders them by atomics inside the library, which the sanitizer cannot see.
// Races between accesses of this project's own code are still reported.
extern "C" const char* __tsan_default_suppressions() { return "race:libdnnl.so\n"; }
