# pyggml/_build_info.py: what this build is, for pyggml.build_info().

set(info "${CMAKE_BINARY_DIR}/pyggml/_build_info.py")
set(options "")
foreach(option CUDA NCCL HIP VULKAN RPC LLAMA NATIVE)
    if(PYGGML_${option})
        string(APPEND options "${option}=ON;")
    else()
        string(APPEND options "${option}=OFF;")
    endif()
endforeach()

file(GLOB_RECURSE native_files CONFIGURE_DEPENDS
    "${PYGGML_NATIVE_DIR}/*.h" "${PYGGML_NATIVE_DIR}/*.inc" "${PYGGML_NATIVE_DIR}/*.c" "${PYGGML_NATIVE_DIR}/*.cpp")
set(script "${CMAKE_CURRENT_SOURCE_DIR}/buildtools/build_info.py")
set(editable "")
if(SKBUILD_STATE STREQUAL "editable")
    set(editable --editable "${CMAKE_CURRENT_SOURCE_DIR}" "${CMAKE_BINARY_DIR}")
endif()
add_custom_command(
    OUTPUT "${info}"
    COMMAND "${Python_EXECUTABLE}" "${script}" "${info}"
        "version=${PYGGML_VERSION}"
        "upstream_package=${PYGGML_UPSTREAM_ORIGIN}"
        "upstream_commit=${PYGGML_UPSTREAM_COMMIT}"
        "ggml_version=${PYGGML_GGML_VERSION}"
        "compiler=${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
        "system=${CMAKE_SYSTEM_NAME} ${CMAKE_SYSTEM_PROCESSOR}"
        "build_type=$<CONFIG>"
        "options=${options}"
        "libraries=${PYGGML_LIBRARIES}"
        --native "${PYGGML_NATIVE_DIR}" ${editable}
    DEPENDS "${script}" ${native_files}
    COMMENT "Writing pyggml/_build_info.py"
    VERBATIM)
add_custom_target(pyggml-build-info ALL DEPENDS "${info}")
install(FILES "${info}" DESTINATION pyggml COMPONENT pyggml)
