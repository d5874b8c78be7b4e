# The shared libraries: names of our own, references bound inside, relative run paths, and their place in the package.
# The build tree has the package's layout (pyggml/lib, pyggml/_ffi), so run paths are the same before and after
# installation.

set(PYGGML_LIBRARIES ggml-base ggml-cpu ggml)
foreach(backend blas cuda hip metal rpc vulkan)
    if(TARGET ggml-${backend})
        list(APPEND PYGGML_LIBRARIES ggml-${backend})
    endif()
endforeach()
if(PYGGML_LLAMA)
    list(APPEND PYGGML_LIBRARIES llama)
endif()

if(APPLE)
    set(PYGGML_ORIGIN "@loader_path")
else()
    set(PYGGML_ORIGIN "$ORIGIN")
endif()

foreach(target IN LISTS PYGGML_LIBRARIES)
    # no VERSION: a wheel stores symbolic links as copies
    set_property(TARGET ${target} PROPERTY VERSION)
    set_property(TARGET ${target} PROPERTY SOVERSION)
    set_property(TARGET ${target} PROPERTY MACHO_CURRENT_VERSION)
    set_target_properties(${target} PROPERTIES
        OUTPUT_NAME "pyggml-${target}"
        LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/pyggml/lib"
        RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/pyggml/lib"
        BUILD_WITH_INSTALL_RPATH ON
        INSTALL_RPATH "${PYGGML_ORIGIN}"
        INSTALL_NAME_DIR "@rpath"
        # their install() rules would copy headers too
        PUBLIC_HEADER "")
    if(PYGGML_PREFIX_SYMBOLS)
        target_link_options(${target} PRIVATE "LINKER:-Bsymbolic" "LINKER:-z,defs")
    endif()
endforeach()

if(TARGET ggml-cuda)
    # NVIDIA's own wheels, where CUDA and NCCL are not the system's
    set_property(TARGET ggml-cuda APPEND PROPERTY INSTALL_RPATH
        "${PYGGML_ORIGIN}/../../nvidia/cu13/lib" "${PYGGML_ORIGIN}/../../nvidia/nccl/lib")
endif()

add_custom_target(pyggml-libraries ALL DEPENDS ${PYGGML_LIBRARIES})

install(TARGETS ${PYGGML_LIBRARIES}
    LIBRARY DESTINATION pyggml/lib COMPONENT pyggml NAMELINK_SKIP
    RUNTIME DESTINATION pyggml/lib COMPONENT pyggml)
