#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Packs the command line for a Linux x86-64 machine without Java: a small runtime, the jars, and GPU libraries.
#
#   flink-job/bundle.sh [--without-flink] BUNDLE.tar.xz [LIBRARY ...]
#   example: flink-job/bundle.sh broadhead.tar.xz build/libbroadhead_cuda.so
#
# After ./mvnw package. On the other machine: tar xf broadhead.tar.xz && broadhead/broadhead doctor. `run` is not in a
# bundle without Flink.
set -euo pipefail
target=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/target
modules=java.base,jdk.unsupported,java.logging,java.management,jdk.management
flink_modules=java.management.rmi,java.rmi,java.xml,java.desktop,java.naming,java.security.jgss,java.sql,java.scripting
# What only a job needs, and what nothing here needs.
flink_jars='flink-|kryo|reflectasm|objenesis|minlog|commons-(collections|io|lang3|text|math3|cli)|RoaringBitmap|javassist|snappy|log4j'
unused_jars='async-profiler'
unused_entries='META-INF/native|web/|.*\.(dll|dylib|jnilib)$|(aix|win|darwin|freebsd|mac|macos|windows)/.*|.*(linux|Linux)[-/](aarch64|arm|armv6|armv7|android-arm|i386|x86|ppc|ppc64|ppc64le|s390x|mips64|riscv64|loongarch64)/.*'

with_flink=1
if [[ ${1:-} == --without-flink ]]; then
  with_flink=0
  shift
fi
if [[ $# == 0 || $1 == -* ]]; then
  sed -n '3,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 2
fi
output=$(realpath "$1")
shift
[[ -e $target/broadhead.jar ]] || {
  echo "$target/broadhead.jar: not there; ./mvnw package makes it" >&2
  exit 1
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundle=$work/broadhead
mkdir -p "$bundle/lib" "$bundle/native"

((with_flink == 0)) || modules+=,$flink_modules
# xz packs better what was not packed before.
jlink --add-modules "$modules" --strip-debug --no-header-files --no-man-pages --compress=0 --output "$bundle/java"
find "$bundle/java" -name '*.so' -exec strip --strip-unneeded {} +

# repack JAR RESULT: stored, jars within it too, without other machines' libraries.
repack() {
  local folder nested
  folder=$(mktemp -d -p "$work")
  (cd "$folder" && jar --extract --file "$1")
  (cd "$folder" && find . -type f -printf '%P\n' | { grep -E "^($unused_entries)" || true; } | xargs -r -d '\n' rm)
  find "$folder" -name '*.jar' | while read -r nested; do
    repack "$nested" "$nested.stored" < /dev/null
    mv "$nested.stored" "$nested"
  done
  jar --create --no-compress --no-manifest --file "$2" -C "$folder" .
  rm -rf "$folder"
}
for jar in "$target"/lib/*.jar; do
  name=$(basename "$jar")
  if [[ $name =~ ^($unused_jars) ]] || { ((with_flink == 0)) && [[ $name =~ ^($flink_jars) ]]; }; then continue; fi
  repack "$jar" "$bundle/lib/$name"
done
cp "$target/broadhead.jar" "$bundle/"
(($# == 0)) || cp "$@" "$bundle/native/"
cat > "$bundle/broadhead" << 'LAUNCHER'
#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
BROADHEAD_LIBRARY_PATH=${BROADHEAD_LIBRARY_PATH:-$here/native} exec "$here/java/bin/java" -jar "$here/broadhead.jar" "$@"
LAUNCHER
chmod +x "$bundle/broadhead"
tar -C "$work" -c broadhead | xz -T0 -9e > "$output"
echo "$output: $(du -m "$output" | cut -f 1) MB"
