# SPDX-License-Identifier: Apache-2.0
"""What GPU compilers say of the kernels: registers, shared memory, occupancy, spills.

    python3 gpu_kernels.py --cuda cuda-build.log --amd native/target/amd > docs/performance/gpu-kernels.md
    python3 gpu_kernels.py --check --cuda cuda-build.log        or --amd FOLDER; exit code 1 where attention spills, or
                                                                multiplies a matrix only when the one before is done

--cuda takes the output of a build with -DBROADHEAD_CUDA=ON, --amd the folder of logs that native/amd/build.sh leaves.
"""

import argparse
import collections
import pathlib
import re
import sys

AMD_ARCHITECTURES = ("gfx1100", "gfx1201", "gfx90a", "gfx942")  # the compiler takes them in this order
FIELDS = {
    "VGPRs": "registers",
    "AGPRs": "accumulators",
    "Occupancy [waves/SIMD]": "occupancy",
    "VGPRs Spill": "spilled",
    "LDS Size [bytes/block]": "shared",
}
TYPES = {"Float16": "fp16", "BFloat16": "bf16", "Float8E4M3": "e4m3", "Float8E5M2": "e5m2", "Float32": "fp32"}


def kernel_of(symbol):
    """(kernel, head size or 0, "tensors on cache"), of a mangled name; None for kernels that move memory."""
    match = re.search(r"\d(decode|prefill_hopper|prefill|update|plain)(I\w+?E)?EvNS", symbol)
    if not match:
        return None
    name, arguments = match.group(1), match.group(2) or ""
    types = [TYPES[t] for t in re.findall(r"B?Float(?:8E4M3|8E5M2|16|32)", arguments)]
    if re.search(r"ES\d_", arguments) and len(types) == 1:  # the same type again
        types *= 2
    numbers = [int(n) for n in re.findall(r"Li(\d+)E", arguments)]
    if "Lb1E" in arguments and name == "update":
        name += ", rotated"
    if len(numbers) > 1 and numbers[1] > 1:
        name += f" x {numbers[1]}"
    return name, numbers[0] if numbers else 0, " on ".join(types)


def read_cuda(log):
    found = collections.defaultdict(dict)
    kernel = architecture = None
    for line in pathlib.Path(log).read_text().splitlines():
        if match := re.search(r"entry function '(\w+)' for '(\w+)'", line):
            kernel, architecture = kernel_of(match.group(1)), match.group(2)
        elif kernel and (match := re.search(r"(\d+) bytes spill stores", line)):
            found[kernel][architecture] = {"spilled": int(match.group(1)) // 4}
        elif kernel and (match := re.search(r"Used (\d+) registers", line)):
            found[kernel][architecture]["registers"] = int(match.group(1))
    return found


def read_serialized(log):
    """Kernels whose asynchronous products ptxas made wait for one another; it gives no warning that -Werror would see."""
    pattern = r"wgmma.mma_async instructions are serialized.* in the function '(\w+)'"
    return sorted(set(re.findall(pattern, pathlib.Path(log).read_text())))


def read_amd(folder):
    """The compiler names no architecture: it takes one after the other, all of a file's kernels for each."""
    found = collections.defaultdict(dict)
    for log in sorted(pathlib.Path(folder).glob("*.log")):
        seen = collections.Counter()
        numbers = None
        for line in log.read_text().splitlines():
            if match := re.search(r"remark:\s+Function Name: (\w+)", line):
                kernel = kernel_of(match.group(1))
                numbers = {}
                if kernel:
                    found[kernel][AMD_ARCHITECTURES[seen[kernel]]] = numbers
                    seen[kernel] += 1
            elif (match := re.search(r"remark:\s+(.+?): (\d+) \[-R", line)) and match.group(1) in FIELDS:
                numbers[FIELDS[match.group(1)]] = int(match.group(2))
    return found


def matters(kernel, architecture):
    """Attention on the machines that servers have."""
    return kernel[0].startswith(("decode", "prefill")) and not architecture.startswith("gfx1")


def check(kernels):
    bad = [
        (kernel, architecture, numbers)
        for kernel, of in sorted(kernels.items())
        for architecture, numbers in of.items()
        if numbers["spilled"] and matters(kernel, architecture)
    ]
    for (name, head_size, types), architecture, numbers in bad:
        print(f"{name}, head size {head_size}, {types}, {architecture}: {numbers['spilled']} registers spilled")
    return 1 if bad or not kernels else 0


def table(kernels, architectures):
    print("| kernel | head size | dtypes | " + " | ".join(architectures) + " |")
    print("|---" * (3 + len(architectures)) + "|")
    for (name, head_size, types), of in sorted(kernels.items()):
        cells = []
        for architecture in architectures:
            numbers = of.get(architecture)
            if not numbers or numbers["registers"] < 8:  # empty: another kernel does its work there
                cells.append("-")
                continue
            cell = str(numbers["registers"])
            if numbers.get("accumulators"):
                cell += f" + {numbers['accumulators']}"
            if "occupancy" in numbers:
                cell += f", {numbers['shared'] / 1024:.0f} KiB, {numbers['occupancy']}"
            if numbers["spilled"]:
                cell += f", **{numbers['spilled']} spilled**"
            cells.append(cell)
        print(f"| {name} | {head_size or 'any'} | {types or 'any'} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", metavar="LOG")
    parser.add_argument("--amd", metavar="FOLDER")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    cuda = read_cuda(options.cuda) if options.cuda else {}
    amd = read_amd(options.amd) if options.amd else {}
    if options.check:
        serialized = read_serialized(options.cuda) if options.cuda else []
        for symbol in serialized:
            print(f"{symbol}: products are serialized")
        return 1 if serialized else check(cuda or amd)
    print("# GPU kernels, as their compilers see them\n")
    print(
        "Generated by `native/bench/gpu_kernels.py` from the compilers' reports; spilled: registers that a thread keeps"
    )
    print("in memory. A kernel `x 2` takes two tiles of query columns.\n")
    if cuda:
        print("## NVIDIA: registers of a thread\n")
        table(cuda, sorted({a for of in cuda.values() for a in of}))
    if amd:
        print("\n## AMD: vector registers (+ accumulators), local memory, waves of a SIMD\n")
        table(amd, AMD_ARCHITECTURES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
