# How everything is compiled, llama.cpp's files and ours.

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

set(BUILD_SHARED_LIBS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_C_STANDARD 11)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
find_package(Threads REQUIRED)

if(NOT MSVC)
    # An abort in ggml becomes a C++ exception (native/base/guard.cpp) that travels through C frames.
    add_compile_options("$<$<COMPILE_LANGUAGE:C>:-fexceptions>")
endif()

if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang" AND NOT APPLE)
    # A process may load another ggml, even with RTLD_GLOBAL and before ours. SONAMEs of our own keep the loader
    # from taking one library for the other, but an ELF symbol is looked up by name alone over the whole process:
    # - inside one library, references are bound when it is linked (-Bsymbolic, in libraries.cmake);
    # - between our libraries, C symbols carry a prefix in the object files (symbols.cmake);
    # - GNU_UNIQUE symbols (inline statics) would be one per process whatever the scope.
    # macOS needs none of this: its symbols are bound to the library that they were linked from.
    set(PYGGML_PREFIX_SYMBOLS ON)
    add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-fno-semantic-interposition>")
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fno-gnu-unique>")
    endif()
endif()
