# SPDX-License-Identifier: Apache-2.0
"""What is measured: heads, rows of a step, and what a line of the results file says."""

import csv
import dataclasses
import pathlib
import re

#: All steps together are at least so large: several times a last-level cache.
LARGER_THAN_CACHES = 256 << 20
MOST_DECODE_COPIES = 64
MOST_PROMPT_COPIES = 4

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

COLUMNS = [
    *("mode", "model", "num_heads", "num_kv_heads", "head_size", "dtype", "cache_dtype", "block_size"),
    *("rows", "rope", "threads", "contender", "kind", "microseconds", "times_ours", "samples", "disturbed"),
    *("garbage_bytes", "tokens_per_s", "gb_per_s", "gflop_per_s"),
]


@dataclasses.dataclass(frozen=True)
class Heads:
    """The attention heads of a model; `group_size` query heads share a KV head."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_size: int

    @property
    def group_size(self):
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads

    @staticmethod
    def parse(text):
        """The model called `text`, or heads written as HEADS/KV_HEADS/HEAD_SIZE."""
        if text in MODELS:
            return MODELS[text]
        sizes = re.fullmatch("/".join([r"([1-9]\d*)"] * 3), text)
        if not sizes or int(sizes[1]) % int(sizes[2]):
            raise ValueError(f"expected {', '.join(MODELS)} or HEADS/KV_HEADS/HEAD_SIZE, got {text}")
        return Heads(text, *map(int, sizes.groups()))


MODELS = {
    heads.name: heads
    for heads in (
        Heads("llama-3-8b", 32, 8, 128),
        Heads("llama-2-7b", 32, 32, 128),
        Heads("qwen3-0.6b", 16, 8, 128),
        Heads("gpt-2", 12, 12, 64),
        Heads("gemma", 8, 4, 256),
    )
}


@dataclasses.dataclass(frozen=True)
class Rows:
    """`count` sequences that each bring `tokens` new tokens and have `context` with them."""

    count: int
    tokens: int
    context: int

    def __str__(self):
        return f"{self.count}x{self.tokens}@{self.context}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One line of a table: a step of some shape on some threads."""

    mode: str
    heads: Heads
    dtype: str
    block_size: int
    rows: tuple
    threads: int

    def __str__(self):
        rows = "+".join(map(str, self.rows))
        return f"{self.mode} {self.heads.name} {self.dtype} {rows}, {self.threads} threads"

    @property
    def new_tokens(self):
        """New tokens of all sequences."""
        return sum(row.count * row.tokens for row in self.rows)

    @property
    def context_bytes(self):
        """Bytes of the keys and values that all sequences have in the cache."""
        tokens = sum(row.count * row.context for row in self.rows)
        return 2 * tokens * self.heads.num_kv_heads * self.heads.head_size * BYTES[self.dtype]

    @property
    def flops(self):
        """Operations of a step: two products over the keys that its query tokens see."""
        keys = sum(row.count * row.tokens * (2 * row.context - row.tokens + 1) / 2 for row in self.rows)
        return 4 * keys * self.heads.num_heads * self.heads.head_size

    @property
    def decodes(self):
        """Whether a sequence brings one token only."""
        return any(row.tokens == 1 for row in self.rows)

    @property
    def copies(self):
        """Different steps that take turns, so that each finds its keys and values in memory."""
        sequences = sum(row.count for row in self.rows)
        most = MOST_PROMPT_COPIES if self.new_tokens > sequences else MOST_DECODE_COPIES
        return min(most, LARGER_THAN_CACHES // self.context_bytes + 1)


@dataclasses.dataclass(frozen=True)
class Result:
    """What one contender took in one cell; `times_ours` is a ratio of samples one after the other."""

    cell: Cell
    contender: str
    kind: str
    seconds: float
    times_ours: float
    samples: int
    disturbed: bool

    def values(self):
        """The values of COLUMNS."""
        cell, heads = self.cell, self.cell.heads
        return [
            cell.mode,
            heads.name,
            heads.num_heads,
            heads.num_kv_heads,
            heads.head_size,
            cell.dtype,
            cell.dtype,
            cell.block_size,
            "+".join(map(str, cell.rows)),
            0,
            cell.threads,
            self.contender,
            self.kind,
            f"{self.seconds * 1e6:.6g}",
            f"{self.times_ours:.6g}",
            self.samples,
            int(self.disturbed),
            "",
            f"{cell.new_tokens / self.seconds:.6g}",
            f"{cell.context_bytes / self.seconds * 1e-9:.6g}",
            f"{cell.flops / self.seconds * 1e-9:.6g}",
        ]


def write_results(path, results):
    """Writes results as CSV, with the columns that `broadhead bench report` reads."""
    with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(result.values() for result in results)
