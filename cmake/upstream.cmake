# llama.cpp's own targets: ggml-base, ggml-cpu, the other backends, ggml, llama.
# The network is not used here: buildtools/vendor.py fills vendor/llama.cpp.

set(lock "${CMAKE_CURRENT_SOURCE_DIR}/vendor/llama.cpp.lock")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${lock}")
foreach(key package version sha256 commit)
    file(STRINGS "${lock}" line REGEX "^${key} ")
    string(REGEX REPLACE "^[^=]*= *" "" PYGGML_LOCK_${key} "${line}")
endforeach()
set(PYGGML_UPSTREAM_PIN "${PYGGML_LOCK_package} ${PYGGML_LOCK_version}, llama.cpp ${PYGGML_LOCK_commit}")

if(NOT PYGGML_LLAMA_CPP_DIR AND DEFINED ENV{PYGGML_LLAMA_CPP_DIR})
    set(PYGGML_LLAMA_CPP_DIR "$ENV{PYGGML_LLAMA_CPP_DIR}")
endif()
if(PYGGML_LLAMA_CPP_DIR)
    get_filename_component(PYGGML_UPSTREAM_DIR "${PYGGML_LLAMA_CPP_DIR}" ABSOLUTE)
else()
    set(PYGGML_UPSTREAM_DIR "${CMAKE_CURRENT_SOURCE_DIR}/vendor/llama.cpp")
endif()
if(NOT EXISTS "${PYGGML_UPSTREAM_DIR}/ggml/src/CMakeLists.txt")
    message(FATAL_ERROR
        "pyggml: there is no llama.cpp source in ${PYGGML_UPSTREAM_DIR}. Three ways to get it:\n"
        "  1. python buildtools/vendor.py  (downloads the pinned ${PYGGML_UPSTREAM_PIN}; pip install . does it by itself)\n"
        "  2. set PYGGML_LLAMA_CPP_DIR to a llama.cpp checkout\n"
        "  3. build from a source distribution of pyggml, which carries it\n")
endif()

# What was really used: the pinned source carries a stamp, anything else is somebody's own checkout.
set(stamp "${PYGGML_UPSTREAM_DIR}/.pyggml-stamp")
if(EXISTS "${stamp}")
    set(PYGGML_UPSTREAM_ORIGIN "${PYGGML_LOCK_package} ${PYGGML_LOCK_version}")
    set(PYGGML_UPSTREAM_COMMIT "${PYGGML_LOCK_commit}")
else()
    set(PYGGML_UPSTREAM_ORIGIN "checkout")
    set(PYGGML_UPSTREAM_COMMIT "unknown")
    if(EXISTS "${PYGGML_UPSTREAM_DIR}/.git")
        execute_process(COMMAND git -C "${PYGGML_UPSTREAM_DIR}" rev-parse --short=9 HEAD
            OUTPUT_VARIABLE head OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
        if(NOT failed)
            set(PYGGML_UPSTREAM_COMMIT "${head}")
        endif()
    endif()
endif()
message(STATUS "pyggml: llama.cpp ${PYGGML_UPSTREAM_COMMIT} (${PYGGML_UPSTREAM_ORIGIN}) in ${PYGGML_UPSTREAM_DIR}")

# Both would otherwise take the commit of whatever git repository encloses the source: ours.
set(GIT_EXE "" CACHE INTERNAL "")
set(CMAKE_DISABLE_FIND_PACKAGE_Git ON)
set(Git_FOUND ON)
set(GIT_EXECUTABLE "${CMAKE_COMMAND}" -E false)
set(LLAMA_BUILD_COMMIT "${PYGGML_UPSTREAM_COMMIT}")
set(LLAMA_BUILD_NUMBER 0)

if(PYGGML_NCCL AND NOT PYGGML_CUDA)
    message(FATAL_ERROR "pyggml: PYGGML_NCCL=ON needs PYGGML_CUDA=ON")
endif()
set(GGML_NATIVE        ${PYGGML_NATIVE})
set(GGML_CUDA          ${PYGGML_CUDA})
set(GGML_CUDA_NCCL     ${PYGGML_NCCL})
set(GGML_CUDA_GRAPHS   ${PYGGML_CUDA})
set(GGML_HIP           ${PYGGML_HIP})
set(GGML_VULKAN        ${PYGGML_VULKAN})
set(GGML_RPC           ${PYGGML_RPC})
set(GGML_OPENMP        OFF) # an exception must not leave an OpenMP region; and wheels would carry libgomp
set(GGML_CCACHE        OFF) # the compiler launcher is the caller's choice
set(GGML_ALL_WARNINGS  OFF)
set(LLAMA_ALL_WARNINGS OFF) # theirs are not for us to mend; ours are in native.cmake

foreach(part TESTS TOOLS EXAMPLES SERVER APP UI MTMD)
    set(LLAMA_BUILD_${part} OFF)
endforeach()
set(LLAMA_BUILD_COMMON  ${PYGGML_BUILD_TOOLS})
set(LLAMA_TOOLS_INSTALL OFF)
set(LLAMA_OPENSSL       OFF)

if(NOT MSVC)
    # ggml's messages name its file: not with the path of the machine that built it
    add_compile_options(
        "$<$<COMPILE_LANGUAGE:C,CXX>:-fmacro-prefix-map=${CMAKE_CURRENT_SOURCE_DIR}/=>"
        "$<$<COMPILE_LANGUAGE:C,CXX>:-fmacro-prefix-map=${PYGGML_UPSTREAM_DIR}/=>")
endif()

if(PYGGML_PREFIX_SYMBOLS)
    include(symbols)
    set(header "${CMAKE_CURRENT_BINARY_DIR}/symbols.h")
    set(cuda_header "${CMAKE_CURRENT_BINARY_DIR}/symbols-cuda.h")
    pyggml_write_symbol_headers("${header}" "${cuda_header}" "${PYGGML_UPSTREAM_DIR}")
    add_compile_options(
        "$<$<COMPILE_LANGUAGE:C,CXX,HIP>:SHELL:-include ${header}>"
        "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-include ${cuda_header}>")
endif()

# EXCLUDE_FROM_ALL: built is what ours needs, and nothing of theirs is installed but by libraries.cmake.
add_subdirectory("${PYGGML_UPSTREAM_DIR}" upstream EXCLUDE_FROM_ALL)

if(PYGGML_NCCL)
    get_directory_property(nccl_found DIRECTORY "${PYGGML_UPSTREAM_DIR}/ggml/src/ggml-cuda" DEFINITION NCCL_FOUND)
    if(NOT nccl_found)
        message(FATAL_ERROR "pyggml: PYGGML_NCCL=ON, but NCCL was not found: set NCCL_ROOT, or NCCL_LIBRARY and "
            "NCCL_INCLUDE_DIR, or leave PYGGML_NCCL off (then pairs of devices use ggml's own all-reduce)")
    endif()
endif()

get_directory_property(PYGGML_GGML_VERSION DIRECTORY "${PYGGML_UPSTREAM_DIR}/ggml" DEFINITION GGML_VERSION)
