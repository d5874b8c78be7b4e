# llama.cpp's own programs over our libraries: for benchmarks, and to run its tests on our devices. Not installed.

if(NOT PYGGML_LLAMA)
    message(FATAL_ERROR "pyggml: PYGGML_BUILD_TOOLS=ON needs PYGGML_LLAMA=ON")
endif()

add_subdirectory("${PYGGML_UPSTREAM_DIR}/tools/llama-bench" upstream/tools/llama-bench EXCLUDE_FROM_ALL)

add_executable(test-llama-archs
    "${PYGGML_UPSTREAM_DIR}/tests/test-llama-archs.cpp"
    "${PYGGML_UPSTREAM_DIR}/tests/gguf-model-data.cpp")
target_include_directories(test-llama-archs PRIVATE "${PYGGML_UPSTREAM_DIR}/tests" "${PYGGML_UPSTREAM_DIR}/src")
target_link_libraries(test-llama-archs PRIVATE llama-common)

set_target_properties(llama-bench llama-bench-impl llama-common test-llama-archs PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin"
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin"
    BUILD_WITH_INSTALL_RPATH ON
    INSTALL_RPATH "${PYGGML_ORIGIN};${PYGGML_ORIGIN}/../pyggml/lib")

add_custom_target(pyggml-tools ALL DEPENDS llama-bench test-llama-archs)
