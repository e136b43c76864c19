#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds what is missing, runs the Flink job on the sample step batches, compares every result row with what the
# model itself computed, and prints a table. Needs JDK 17, g++ and CMake. Exit code 0 only if every row is right.
#
#   samples/quickstart.sh [OPTION of 'broadhead run' ...]      for example --threads 1 or --parallelism 2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "${1:-}" in
  -h | --help)
    sed -n '3,6s/^# \{0,1\}//p' samples/quickstart.sh
    exit 0
    ;;
esac

jar=flink-job/target/broadhead.jar
work=$(mktemp -d "${TMPDIR:-/tmp}/broadhead-quickstart.XXXXXX")
trap 'rm -rf "$work"' EXIT

for tool in java g++ cmake; do
  if ! command -v "$tool" > /dev/null; then
    echo "quickstart: $tool was not found; JDK 17, g++ and CMake are needed" >&2
    exit 1
  fi
done

if [[ ! -f $jar ]]; then
  echo "building (the first time Maven also fetches its libraries) ..."
  if ! ./mvnw -q -DskipTests package > "$work/build.log" 2>&1; then
    tail -n 40 "$work/build.log" >&2
    echo "quickstart: the build failed" >&2
    exit 1
  fi
fi

# value KEY LINE: the value of KEY in a line of key=value pairs
value() {
  sed -n "s/.*[ :]$1=\([^ ]*\).*/\1/p" <<< "$2"
}

rule="--------------------------------------------------------------------------------------------------------------"
row="%-8s %8s %10s %7s %9s %12s %12s %9s  %-16s %s\n"
printf "\n$row%s\n" sample batches sequences tokens tokens/s copied worst allowed backend rows "$rule"

failed=0
for sample in llama minilm; do
  data=samples/data/$sample
  if ! java -jar "$jar" run --job "$data/job.yaml" --input "$data/steps.arrow" --output "$work/$sample" "$@" \
    > "$work/run.log" 2> "$work/run.err"; then
    printf '%-8s the job failed\n' "$sample"
    tail -n 20 "$work/run.err"
    failed=1
    continue
  fi
  verdict=right
  java -jar "$jar" compare "$data/expected.arrow" "$work/$sample" > "$work/compare.log" 2> "$work/compare.err" ||
    verdict=WRONG
  done_line=$(grep '^done: ' "$work/run.log" || true)
  compared=$(grep '^compared: ' "$work/compare.log" || true)
  # shellcheck disable=SC2059
  printf "$row" "$sample" "$(value batches "$done_line")" "$(value sequences "$done_line")" \
    "$(value tokens "$done_line")" "$(value tokens_per_s "$done_line")" "$(value bytes_copied "$done_line") B" \
    "$(value worst_error "$compared")" "$(value tolerance "$compared")" \
    "$(value backend "$done_line")/$(value tier "$done_line")" "$(value rows "$compared") $verdict"
  if [[ $verdict != right ]]; then
    cat "$work/compare.err"
    failed=1
  fi
done

printf '%s\n' "$rule"
if [[ $failed == 0 ]]; then
  echo "Every row agrees with what the model itself computed."
else
  echo "quickstart: not every row is right" >&2
fi
exit "$failed"
