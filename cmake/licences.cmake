# The licences of what was compiled, beside pyggml's own in the wheel.

set(licences "${CMAKE_BINARY_DIR}/licenses")
execute_process(
    COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/buildtools/licences.py" "${PYGGML_UPSTREAM_DIR}" "${licences}"
    RESULT_VARIABLE failed ERROR_VARIABLE error)
if(failed)
    message(FATAL_ERROR "pyggml: the licences of llama.cpp could not be collected: ${error}")
endif()
if(DEFINED SKBUILD_METADATA_DIR)
    set(destination "${SKBUILD_METADATA_DIR}/licenses")
else()
    set(destination pyggml/licenses)
endif()
install(DIRECTORY "${licences}/" DESTINATION "${destination}/llama.cpp" COMPONENT pyggml)
