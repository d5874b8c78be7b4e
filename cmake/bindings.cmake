# pyggml/_ffi/_lib: the bindings, generated from the headers at hand (buildtools/gen_ffi.py), for the stable ABI.

set(generator "${CMAKE_CURRENT_SOURCE_DIR}/buildtools/gen_ffi.py")

set(ffi_dir "${CMAKE_CURRENT_BINARY_DIR}/ffi")
file(GLOB inputs CONFIGURE_DEPENDS
    "${CMAKE_CURRENT_SOURCE_DIR}/buildtools/ffi/*.py"
    "${PYGGML_UPSTREAM_DIR}/ggml/include/*.h" "${PYGGML_UPSTREAM_DIR}/include/*.h" "${PYGGML_NATIVE_DIR}/*.h")
set(without "")
foreach(part LLAMA RPC)
    if(NOT PYGGML_${part})
        string(TOLOWER "${part}" part)
        list(APPEND without --without ${part})
    endif()
endforeach()
add_custom_command(
    OUTPUT "${ffi_dir}/_lib.c" "${ffi_dir}/_lib_calls.cpp" "${ffi_dir}/_lib.pyi" "${ffi_dir}/_lib.json"
    COMMAND "${Python_EXECUTABLE}" "${generator}"
        --source "${PYGGML_UPSTREAM_DIR}" --native "${PYGGML_NATIVE_DIR}" --out "${ffi_dir}"
        --cc "${CMAKE_C_COMPILER}" ${without}
    DEPENDS "${generator}" ${inputs}
    COMMENT "Generating the bindings"
    VERBATIM)

Python_add_library(_lib MODULE USE_SABI 3.10 WITH_SOABI "${ffi_dir}/_lib.c" "${ffi_dir}/_lib_calls.cpp")
target_include_directories(_lib PRIVATE
    "${ffi_dir}" "${PYGGML_NATIVE_DIR}" "${PYGGML_UPSTREAM_DIR}/ggml/include" "${PYGGML_UPSTREAM_DIR}/ggml/src"
    "${PYGGML_UPSTREAM_DIR}/include")
target_link_libraries(_lib PRIVATE ${PYGGML_LIBRARIES})
set_target_properties(_lib PROPERTIES
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/pyggml/_ffi"
    C_VISIBILITY_PRESET hidden
    CXX_VISIBILITY_PRESET hidden
    BUILD_WITH_INSTALL_RPATH ON
    INSTALL_RPATH "${PYGGML_ORIGIN}/../lib")
if(PYGGML_PREFIX_SYMBOLS)
    target_link_options(_lib PRIVATE "LINKER:-Bsymbolic")
endif()
install(TARGETS _lib LIBRARY DESTINATION pyggml/_ffi COMPONENT pyggml)
install(FILES "${ffi_dir}/_lib.pyi" "${ffi_dir}/_lib.json" DESTINATION pyggml/_ffi COMPONENT pyggml)
