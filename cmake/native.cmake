# Our sources in llama.cpp's targets. Where one replaces a file of theirs it #includes that file, so its static
# functions can be reached and its names be changed on the way, without patching anything.

set(PYGGML_NATIVE_DIR "${CMAKE_CURRENT_SOURCE_DIR}/native")

function(pyggml_own_source target file)
    set_source_files_properties("${file}" TARGET_DIRECTORY ${target} PROPERTIES
        SKIP_UNITY_BUILD_INCLUSION ON
        COMPILE_OPTIONS "$<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:-Wall;-Wextra;-Wno-unused-function>")
    target_include_directories(${target} PRIVATE "${PYGGML_NATIVE_DIR}")
endfunction()

# pyggml_replace_source(<target> <their file, as its last path components> <our file in native/>)
function(pyggml_replace_source target theirs ours)
    set(file "${PYGGML_NATIVE_DIR}/${ours}")
    if(NOT EXISTS "${file}")
        message(WARNING "pyggml: native/${ours} is missing, ${target} keeps ${theirs}")
        return()
    endif()
    get_target_property(sources ${target} SOURCES)
    string(REPLACE "." "\\." pattern "${theirs}")
    set(kept "${sources}")
    list(FILTER kept EXCLUDE REGEX "(^|/)${pattern}$")
    list(LENGTH sources before)
    list(LENGTH kept after)
    math(EXPR removed "${before} - ${after}")
    if(NOT removed EQUAL 1)
        message(FATAL_ERROR "pyggml: target ${target} of llama.cpp has ${removed} sources named ${theirs}, expected 1 "
            "(native/${ours} takes its place; written for ${PYGGML_UPSTREAM_PIN})")
    endif()
    set_target_properties(${target} PROPERTIES SOURCES "${kept};${file}")
    pyggml_own_source(${target} "${file}")
endfunction()

function(pyggml_add_source target ours)
    set(file "${PYGGML_NATIVE_DIR}/${ours}")
    if(NOT EXISTS "${file}")
        message(WARNING "pyggml: native/${ours} is missing in ${target}")
        return()
    endif()
    target_sources(${target} PRIVATE "${file}")
    pyggml_own_source(${target} "${file}")
endfunction()

set(ggml_src "${PYGGML_UPSTREAM_DIR}/ggml/src")

# ggml-base: guards, counted memory, meta devices and what ggml inferred for them
pyggml_replace_source(ggml-base ggml-backend-meta.cpp meta.cpp)
file(GLOB base_sources CONFIGURE_DEPENDS RELATIVE "${PYGGML_NATIVE_DIR}"
    "${PYGGML_NATIVE_DIR}/guard*.cpp" "${PYGGML_NATIVE_DIR}/memory*.cpp"
    "${PYGGML_NATIVE_DIR}/meta_*.cpp" "${PYGGML_NATIVE_DIR}/placement*.cpp")
foreach(source IN LISTS base_sources)
    pyggml_add_source(ggml-base ${source})
endforeach()
target_link_libraries(ggml-base PRIVATE Threads::Threads)

# ggml-cpu: kernels whose failures reach the caller
pyggml_replace_source(ggml-cpu ggml-cpu.c ggml_cpu.c)
target_include_directories(ggml-cpu PRIVATE "${ggml_src}/ggml-cpu" "${ggml_src}")

# ggml-rpc: a server that goes away is an error, not the end
if(PYGGML_RPC)
    pyggml_replace_source(ggml-rpc ggml-rpc.cpp ggml_rpc.cpp)
    target_include_directories(ggml-rpc PRIVATE "${ggml_src}/ggml-rpc" "${ggml_src}")
endif()

# ggml: virtual and simulated devices (here, not in ggml-base, because they register themselves)
foreach(source cpu_backend.cpp sim_backend.cpp host_plan.cpp)
    pyggml_add_source(ggml ${source})
endforeach()
file(GLOB parts CONFIGURE_DEPENDS RELATIVE "${PYGGML_NATIVE_DIR}"
    "${PYGGML_NATIVE_DIR}/cpu_*.cpp" "${PYGGML_NATIVE_DIR}/sim_*.cpp" "${PYGGML_NATIVE_DIR}/host_*.cpp")
list(REMOVE_ITEM parts cpu_backend.cpp sim_backend.cpp host_plan.cpp)
foreach(source IN LISTS parts)
    pyggml_add_source(ggml ${source})
endforeach()
target_include_directories(ggml PRIVATE "${ggml_src}")
target_link_libraries(ggml PRIVATE Threads::Threads)

if(PYGGML_LLAMA)
    pyggml_replace_source(llama llama-mmap.cpp llama_mmap.cpp)
    pyggml_add_source(llama llama_ext.cpp)
    target_include_directories(llama PRIVATE "${PYGGML_UPSTREAM_DIR}/src" "${ggml_src}")
endif()
