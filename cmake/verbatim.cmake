# Flags that every target shares, and the helpers with which rooms declare libraries and tests.

# The arithmetic contract forbids the compiler to fuse, reorder or approximate floating point.
if(CMAKE_CXX_FLAGS MATCHES "-(ffast-math|Ofast|funsafe-math-optimizations|fassociative-math|freciprocal-math|ffinite-math-only|fno-signed-zeros)")
  message(FATAL_ERROR "CMAKE_CXX_FLAGS has ${CMAKE_MATCH_0}: the arithmetic contract (docs/numerics.md) excludes fast-math flags")
endif()

if(CMAKE_CUDA_FLAGS MATCHES "-(use_fast_math|-use_fast_math|fmad=true|-fmad=true|ftz=true|-ftz=true)")
  message(FATAL_ERROR "CMAKE_CUDA_FLAGS has -${CMAKE_MATCH_1}: the arithmetic contract (docs/numerics.md) excludes it")
endif()

set(VERBATIM_CUDA_FLAGS -std=c++20 -fmad=false -ftz=false -prec-div=true -prec-sqrt=true
    --expt-relaxed-constexpr -Werror=all-warnings)

add_library(verbatim_flags INTERFACE)
target_include_directories(verbatim_flags INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
target_compile_options(verbatim_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror;-Wno-missing-field-initializers;-ffp-contract=off>"
  "$<$<COMPILE_LANGUAGE:CUDA>:${VERBATIM_CUDA_FLAGS};-Xfatbin=-compress-all;-Xcompiler=-Wall,-ffp-contract=off>")
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1")

if(VERBATIM_SANITIZER)
  add_compile_options(-fsanitize=${VERBATIM_SANITIZER} -fno-omit-frame-pointer -O1 -g1)
  add_link_options(-fsanitize=${VERBATIM_SANITIZER})
  add_compile_definitions(VERBATIM_FEW_KERNELS)
  if(VERBATIM_SANITIZER MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
endif()

find_program(MOLD_LINKER mold)
if(MOLD_LINKER)
  add_link_options(-fuse-ld=mold)
endif()

find_program(CCACHE ccache)
foreach(language CXX CUDA)
  if(CCACHE AND NOT CMAKE_${language}_COMPILER_LAUNCHER)
    set(CMAKE_${language}_COMPILER_LAUNCHER ${CCACHE})
  endif()
endforeach()

# verbatim_library(name SOURCES a.cc b.cc DEPS other_library absl::status ...)
function(verbatim_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC verbatim_flags ${ARG_DEPS})
endfunction()

# What ./run test builds and runs under ThreadSanitizer: every test labelled "concurrency"; and under AddressSanitizer and UBSan: every
# test not labelled "slow" or "reference", which add a whole model's arithmetic and no new memory accesses.
add_custom_target(concurrency_tests)
add_custom_target(memory_tests)

# verbatim_test(name SOURCES a_test.cc DEPS verbatim_model LABELS unit): one GoogleTest binary, one CTest entry.
# The test runs with the source tree as working directory, so fixtures are named relative to it.
function(verbatim_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(VERBATIM_SANITIZER STREQUAL "thread")
    list(APPEND ARG_SOURCES ${PROJECT_SOURCE_DIR}/tests/tsan_suppressions.cc)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_compile_options(${name} PRIVATE -O1)  # tests compile a fifth faster than with -O2
  target_link_libraries(${name} PRIVATE verbatim_flags ${ARG_DEPS} GTest::gtest GTest::gmock GTest::gtest_main Threads::Threads)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if("concurrency" IN_LIST ARG_LABELS)
    add_dependencies(concurrency_tests ${name})
  endif()
  if(NOT "slow" IN_LIST ARG_LABELS AND NOT "reference" IN_LIST ARG_LABELS)
    add_dependencies(memory_tests ${name})
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
endfunction()
