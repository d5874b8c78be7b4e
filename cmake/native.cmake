# Our sources in llama.cpp's targets.
#
# The one rule: a file of ours that #includes a source file of theirs ("ggml-backend-meta.cpp") takes its place in the
# target. So its static functions can be reached and its names be changed on the way, and nothing is patched.

set(PYGGML_NATIVE_DIR "${CMAKE_CURRENT_SOURCE_DIR}/native")
set(PYGGML_NATIVE_SOURCES "") # those that found a target

# pyggml_native_sources(<target> <folder in native/>...)
function(pyggml_native_sources target)
    set(files "")
    foreach(folder IN LISTS ARGN)
        file(GLOB found CONFIGURE_DEPENDS "${PYGGML_NATIVE_DIR}/${folder}/*.c" "${PYGGML_NATIVE_DIR}/${folder}/*.cpp")
        if(NOT found)
            message(FATAL_ERROR "pyggml: no source files in native/${folder}")
        endif()
        list(APPEND files ${found})
    endforeach()
    get_target_property(sources ${target} SOURCES)
    foreach(file IN LISTS files)
        file(STRINGS "${file}" includes REGEX "^ *# *include +\"[^\"]+\\.(c|cpp)\"")
        list(TRANSFORM includes REPLACE "^[^\"]*\"([^\"]*/)?([^\"/]+)\".*$" "\\2")
        list(REMOVE_DUPLICATES includes)
        foreach(theirs IN LISTS includes)
            list(LENGTH sources before)
            string(REPLACE "." "\\." pattern "${theirs}")
            list(FILTER sources EXCLUDE REGEX "(^|/)${pattern}$")
            list(LENGTH sources after)
            math(EXPR removed "${before} - ${after}")
            if(NOT removed EQUAL 1)
                message(FATAL_ERROR "pyggml: ${file} includes ${theirs} and so takes its place in llama.cpp's target ${target}, "
                    "which should have 1 source of that name and has ${removed}. Written for ${PYGGML_UPSTREAM_PIN}.")
            endif()
            set_property(DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${file}")
        endforeach()
    endforeach()
    set_target_properties(${target} PROPERTIES SOURCES "${sources};${files}")
    set_source_files_properties(${files} TARGET_DIRECTORY ${target} PROPERTIES
        SKIP_UNITY_BUILD_INCLUSION ON
        COMPILE_OPTIONS "$<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:-Wall;-Wextra;-Wno-unused-function>")
    target_include_directories(${target} PRIVATE "${PYGGML_NATIVE_DIR}" "${PYGGML_UPSTREAM_DIR}/ggml/src")
    target_link_libraries(${target} PRIVATE Threads::Threads)
    set(PYGGML_NATIVE_SOURCES "${PYGGML_NATIVE_SOURCES};${files}" PARENT_SCOPE)
endfunction()

# guards, counted memory, meta devices and what ggml inferred for them, traces
pyggml_native_sources(ggml-base base meta)

# kernels whose failures reach the caller
pyggml_native_sources(ggml-cpu cpu)
target_include_directories(ggml-cpu PRIVATE "${PYGGML_UPSTREAM_DIR}/ggml/src/ggml-cpu")

# a server that goes away is an error, not the end
if(PYGGML_RPC)
    pyggml_native_sources(ggml-rpc rpc)
    target_include_directories(ggml-rpc PRIVATE "${PYGGML_UPSTREAM_DIR}/ggml/src/ggml-rpc")
endif()

# Mesa's lavapipe counts references to what descriptor sets name, also to what is gone
if(PYGGML_VULKAN)
    pyggml_native_sources(ggml-vulkan vulkan)
    target_include_directories(ggml-vulkan PRIVATE "${PYGGML_UPSTREAM_DIR}/ggml/src/ggml-vulkan")
endif()

# virtual and simulated devices: not in ggml-base, because they enter the registry, which is here
pyggml_native_sources(ggml vcpu sim)

if(PYGGML_LLAMA)
    pyggml_native_sources(llama llama)
endif()

file(GLOB_RECURSE lost CONFIGURE_DEPENDS "${PYGGML_NATIVE_DIR}/*.c" "${PYGGML_NATIVE_DIR}/*.cpp")
list(REMOVE_ITEM lost ${PYGGML_NATIVE_SOURCES})
list(FILTER lost EXCLUDE REGEX "/(rpc|vulkan|llama)/[^/]*$") # left out by an option
if(lost)
    message(FATAL_ERROR "pyggml: files in native/ that belong to no library (see cmake/native.cmake): ${lost}")
endif()
