#!/bin/bash
# Builds the reproducers against an unmodified llama.cpp and runs each in a process of its own.
#   docs/upstream/run.sh LLAMA_CPP_BUILD LLAMA_CPP_SRC [NAME...]
# LLAMA_CPP_BUILD: a build folder with shared libraries (cmake -DBUILD_SHARED_LIBS=ON -DCMAKE_BUILD_TYPE=Release), below which
# libggml.so is found. LLAMA_CPP_SRC: its source, for the headers. CXX chooses the compiler.
set -u
ulimit -c 0
if [ $# -lt 2 ]; then
    sed -n 's/^# \?//p' "$0" | tail -n +2 >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
src=$2
lib=$(find "$1" -name 'libggml.so' -print -quit)
if [ -z "$lib" ]; then
    echo "no libggml.so below $1: build llama.cpp there with shared libraries first" >&2
    exit 2
fi
lib=$(cd "$(dirname "$lib")" && pwd)
shift 2
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    for f in "$here"/[0-9]*.cpp; do
        names+=("$(basename "$f" .cpp)")
    done
fi

run() { # title, program, arguments
    local title=$1
    shift
    # the stack that ggml prints when it aborts would start a debugger
    (GGML_NO_BACKTRACE=1 timeout -k 1 20 "$@" >"$out/stdout" 2>"$out/stderr"; exit $?) 2>/dev/null
    local rc=$? say
    say=$(grep -m1 -E 'GGML_ASSERT|GGML_ABORT|fatal error|^.*\.(c|cpp):[0-9]+:' "$out/stderr" | sed 's|.*/||')
    sed -e "s/^/$title: /" -e '$a\' "$out/stdout"
    case $rc in
        0)       ;;
        124|137) printf '%s: HANGS (stopped after 20 s)%s\n' "$title" "${say:+: $say}" ;;
        134)     printf '%s: ABORTS: %s\n' "$title" "$say" ;;
        139)     printf '%s: SEGMENTATION FAULT\n' "$title" ;;
        *)       printf '%s: ends with %d: %s\n' "$title" "$rc" "$(tail -n1 "$out/stderr")" ;;
    esac
}

failed=0
for name in "${names[@]}"; do
    if ! ${CXX:-c++} -std=c++17 -O1 -I"$src/ggml/include" -I"$src/ggml/src" "$here/$name.cpp" -o "$out/$name" \
            -L"$lib" -lggml -lggml-cpu -lggml-base -Wl,-rpath,"$lib" 2>"$out/errors"; then
        echo "$name: does not build against this llama.cpp:"
        head -n 5 "$out/errors"
        failed=1
        continue
    fi
    run "$name" "$out/$name"
    if grep -q 'argc' "$here/$name.cpp"; then
        run "$name (with argument)" "$out/$name" x
    fi
done
exit $failed
