# Stops the configuration when a name that native/ relies on is gone from the file where it was: it would otherwise be
# a page of compiler errors, or, for a thing reached by its text only, a wrong result.

set(table "${CMAKE_CURRENT_SOURCE_DIR}/cmake/upstream_names.txt")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${table}")
file(STRINGS "${table}" lines REGEX "^[^#]")
set(missing "")
foreach(line IN LISTS lines)
    if(NOT line MATCHES "^([^ ]+) +(.*[^ ]) *$")
        message(FATAL_ERROR "pyggml: cmake/upstream_names.txt: not '<file> <text>': ${line}")
    endif()
    set(file "${CMAKE_MATCH_1}")
    set(name "${CMAKE_MATCH_2}")
    if(NOT EXISTS "${PYGGML_UPSTREAM_DIR}/${file}")
        string(APPEND missing "\n  ${file}: no such file (looked for: ${name})")
        continue()
    endif()
    file(READ "${PYGGML_UPSTREAM_DIR}/${file}" text)
    string(FIND "${text}" "${name}" at)
    if(at EQUAL -1)
        string(APPEND missing "\n  ${file}: ${name}")
    endif()
endforeach()
if(missing)
    message(FATAL_ERROR
        "pyggml: this llama.cpp (${PYGGML_UPSTREAM_COMMIT}) lacks names that pyggml's native code relies on:${missing}\n"
        "pyggml ${PYGGML_VERSION} is written for ${PYGGML_UPSTREAM_PIN}. Use that one (python buildtools/vendor.py), or adapt "
        "native/ and then cmake/upstream_names.txt.\n")
endif()
