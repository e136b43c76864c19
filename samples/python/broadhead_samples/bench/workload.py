# SPDX-License-Identifier: Apache-2.0
"""Random inputs of a cell, contiguous as the peers take them, and our own steps over the same numbers."""

import dataclasses

import numpy as np
import pyarrow as pa

from broadhead_samples import dtypes, produce
from broadhead_samples.bench.interleave import Contender, timed

OURS = "broadhead"
_TABLE = 1 << 20
_WINDOW = _TABLE // 16


class NormalValues:
    """Memory full of N(0, 1) values: windows of one table, at random places."""

    def __init__(self, dtype, seed):
        """Draws the table in the stored form of `dtype`."""
        self._rng = np.random.default_rng(seed)
        self._table = dtypes.encode(self._rng.standard_normal(_TABLE, np.float32), dtype)

    def array(self, *shape):
        """A new array of stored elements."""
        flat = np.empty(int(np.prod(shape)), self._table.dtype)
        for start in range(0, len(flat), _WINDOW):
            length = min(_WINDOW, len(flat) - start)
            window = self._rng.integers(_TABLE - length + 1)
            flat[start : start + length] = self._table[window : window + length]
        return flat.reshape(shape)


@dataclasses.dataclass
class Part:
    """The sequences of one kind in one step, stored elements."""

    query: np.ndarray  #: [batch, tokens, num_heads, head_size]
    key: np.ndarray  #: [batch, num_kv_heads, context, head_size], the new tokens at the end
    value: np.ndarray


def random_steps(cell, seed=1):
    """The inputs of `cell.copies` steps: a list of one Part for each kind of rows."""
    values, heads = NormalValues(cell.dtype, seed), cell.heads
    return [
        [
            Part(
                values.array(row.count, row.tokens, heads.num_heads, heads.head_size),
                values.array(row.count, heads.num_kv_heads, row.context, heads.head_size),
                values.array(row.count, heads.num_kv_heads, row.context, heads.head_size),
            )
            for row in cell.rows
        ]
        for _ in range(cell.copies)
    ]


class OurSteps:
    """Steps through the C ABI over shuffled blocks that hold the keys and values of `steps`."""

    def __init__(self, library, cell, steps):
        """Fills a cache and lends the batches; `library` owns what is made."""
        self._library, self._cell, self._turn = library, cell, 0
        heads, size = cell.heads, cell.block_size
        per_step = sum(row.count * -(-row.context // size) for row in cell.rows)
        order = np.random.default_rng(0).permutation(per_step * cell.copies).astype(np.int32)
        self._cache = library.cache(len(order), size, heads.num_kv_heads, heads.head_size, cell.dtype)
        self._blocks = order.reshape(cell.copies, per_step)
        layer = library.layer(heads.num_heads, heads.num_kv_heads, heads.head_size, cell.dtype, self._cache)
        batches = [self._fill(parts, list(blocks)) for parts, blocks in zip(steps, self._blocks, strict=True)]
        self._binding = library.binding(layer, batches[0])
        self._batches = [library.lend(batch) for batch in batches]
        self._outputs = [self._empty_result() for _ in steps]
        self._results = [library.lend(output) for output in self._outputs]

    def _fill(self, parts, blocks):
        """Writes one step's keys and values to `blocks`; answers its batch."""
        size, builder = self._cell.block_size, produce.StepBatchBuilder(self._cell.dtype)
        for part in parts:
            tokens, context = part.query.shape[1], part.key.shape[2]
            for query, key, value in zip(part.query, part.key, part.value, strict=True):
                count = -(-context // size)
                table, blocks = np.array(blocks[:count]), blocks[count:]
                by_token = [np.ascontiguousarray(x.transpose(1, 0, 2)) for x in (key, value)]
                padding = ((0, count * size - context), (0, 0), (0, 0))
                padded = [np.pad(x, padding) if count * size > context else x for x in by_token]
                self._library.write_blocks(self._cache, table, *padded)
                positions = np.arange(context - tokens, context)
                builder.add(
                    len(builder),
                    query=query,
                    key=by_token[0][-tokens:],
                    value=by_token[1][-tokens:],
                    seq_len=context,
                    slot_mapping=table[positions // size].astype(np.int64) * size + positions % size,
                    block_table=table,
                )
        return builder.build()

    def _empty_result(self):
        heads = self._cell.heads
        rows = [
            np.zeros((row.tokens, heads.num_heads, heads.head_size), dtypes.STORAGE[self._cell.dtype][0])
            for row in self._cell.rows
            for _ in range(row.count)
        ]
        shape = (heads.num_heads, heads.head_size)
        field, column = produce.tensor_list(rows, shape, self._cell.dtype, "output")
        return pa.RecordBatch.from_arrays([column], schema=pa.schema([field]))

    def _next(self):
        self._turn += 1
        return self._turn % self._cell.copies

    def _step(self, copy):
        self._library.step(self._binding, self._batches[copy], self._results[copy])

    def output(self, copy):
        """Does step `copy`; answers its output in float32, [tokens of all rows, num_heads, head_size]."""
        self._step(copy)
        heads = self._cell.heads
        stored = self._outputs[copy].column(0).flatten().storage.flatten().to_numpy()
        return dtypes.decode(stored, self._cell.dtype).reshape(-1, heads.num_heads, heads.head_size)

    def contenders(self):
        """Our steps, and the limits of the machine for them."""
        cell = self._cell
        ours = timed(OURS, "ours", lambda: self._step(self._next()))
        limits = []
        if cell.decodes:
            limits.append(
                Contender(
                    "read", "limit", lambda: self._library.probe_read(self._cache, self._blocks[self._next()])
                )
            )
        limits.append(Contender("fma", "limit", lambda: self._library.probe_compute(cell.flops)))
        return ours, limits
