# SPDX-License-Identifier: Apache-2.0
"""Builds attention step batches from NumPy arrays; as a command, writes a random demo file and its job file.

Example::

    from broadhead_samples.produce import BlockAllocator, StepBatchBuilder, write_ipc

    blocks = BlockAllocator(num_blocks=256, block_size=16, seed=0)
    step = StepBatchBuilder(dtype="float16", layer="model.layers.0.self_attn")
    slots = blocks.append("request-1", len(key))
    step.add("request-1", query=query, key=key, value=value, seq_len=blocks.length("request-1"),
             slot_mapping=slots, block_table=blocks.table("request-1"))
    write_ipc("steps.arrow", [step.build()])
"""

import contextlib
import os
import pathlib

import numpy as np
import pyarrow as pa

from broadhead_samples import command_line, dtypes, jobfile

EXAMPLE = """\
example:
  broadhead-produce --dtype bfloat16 --heads 8 --kv-heads 2 --head-size 64 demo
  java -jar flink-job/target/broadhead.jar attend --job demo/job.yaml \\
      --input demo/steps.arrow --output out.arrow
  broadhead-check --job demo/job.yaml --steps demo/steps.arrow out.arrow
"""


def tensor_type(dtype, shape):
    """The Arrow type of one tensor: arrow.fixed_shape_tensor of `shape` over the storage of `dtype`."""
    return pa.fixed_shape_tensor(pa.from_numpy_dtype(dtypes.STORAGE[dtype][0]), tuple(shape))


def tensor_list(rows, shape, dtype, name):
    """A column list<tensor[shape]> from one array [n, *shape] a row (None: a null list).

    Values may be floating point (rounded to `dtype`) or already the stored bits. Returns (field, array).
    """
    width = int(np.prod(shape))
    parts = [
        np.empty((0, width), dtypes.STORAGE[dtype][0])
        if row is None
        else dtypes.encode(_of_shape(row, shape, name, i), dtype).reshape(-1, width)
        for i, row in enumerate(rows)
    ]
    offsets = np.cumsum([0] + [len(part) for part in parts]).astype(np.int32)
    flat = pa.array(np.concatenate([part.reshape(-1) for part in parts]))
    tensors = pa.ExtensionArray.from_storage(
        tensor_type(dtype, shape), pa.FixedSizeListArray.from_arrays(flat, width)
    )
    list_type = pa.list_(pa.field("item", tensors.type, nullable=False))
    mask = pa.array([row is None for row in rows]) if any(row is None for row in rows) else None
    column = pa.ListArray.from_arrays(pa.array(offsets), tensors, type=list_type, mask=mask)
    logical = dtypes.STORAGE[dtype][1]
    metadata = {"dtype": logical} if logical else None
    return pa.field(name, list_type, metadata=metadata), column


def int_list(rows, item_type, name):
    """A column list<item_type> from one sequence of integers a row (None: empty). Returns (field, array)."""
    parts = [
        _integers([] if row is None else row, item_type, f"column {name}, row {i}")
        for i, row in enumerate(rows)
    ]
    offsets = np.cumsum([0] + [len(part) for part in parts]).astype(np.int32)
    values = pa.array(np.concatenate(parts), item_type)
    list_type = pa.list_(pa.field("item", item_type, nullable=False))
    return pa.field(name, list_type, nullable=False), pa.ListArray.from_arrays(
        pa.array(offsets), values, type=list_type
    )


def _integers(values, item_type, where):
    values = np.asarray(values)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ValueError(f"{where}: expected integers [n], got {values.dtype} {list(values.shape)}")
    limits = np.iinfo(str(item_type))
    for extreme in (int(values.min()), int(values.max())) if values.size else ():
        if not limits.min <= extreme <= limits.max:
            raise ValueError(f"{where}: expected {item_type}, got {extreme}")
    return values.astype(limits.dtype)


def _of_shape(row, shape, name, index):
    row = np.asarray(row)
    if row.ndim != 1 + len(shape) or row.shape[1:] != tuple(shape):
        expected = ", ".join(["n", *map(str, shape)])
        raise ValueError(f"column {name}, row {index}: expected [{expected}], got {list(row.shape)}")
    return row


_ID_TYPES = ((pa.int64(), (int, np.integer)), (pa.utf8(), str))


def _id_type(ids, name):
    for arrow_type, python_types in _ID_TYPES:
        if all(isinstance(value, python_types) for value in ids):
            return arrow_type
    raise ValueError(f"column {name}: expected integers in all rows, or text in all, got {ids}")


def _ids(values, id_type, name):
    for i, value in enumerate(values):
        where = f"column {name}, row {i}"
        if value is None:
            continue
        if not isinstance(value, dict(_ID_TYPES)[id_type]):
            raise ValueError(f"{where}: expected {id_type} as in sequence_id, got {value!r}")
        if id_type == pa.int64():
            _integers([value], id_type, where)
    return pa.array(values, id_type)


class BlockAllocator:
    """Hands out KV cache blocks in a shuffled order and keeps each sequence's block table.

    One allocator serves all layers whose sequences have the same lengths; every layer has a cache of its own,
    so block 7 of one layer is not block 7 of another. Not thread-safe.
    """

    def __init__(self, num_blocks, block_size, seed=None):
        """Shuffles the `num_blocks` free blocks with `seed`; without a seed they are handed out in order."""
        self.num_blocks, self.block_size = num_blocks, block_size
        order = np.arange(num_blocks) if seed is None else np.random.default_rng(seed).permutation(num_blocks)
        self._free = [int(block) for block in order[::-1]]
        self._tables = {}
        self._lengths = {}

    def append(self, sequence_id, n):
        """Reserves slots for `n` more tokens of a sequence; returns the slots, int64 [n]."""
        table = self._tables.setdefault(sequence_id, [])
        start = self._lengths.get(sequence_id, 0)
        while len(table) * self.block_size < start + n:
            if not self._free:
                raise ValueError(f"all {self.num_blocks} blocks of {self.block_size} tokens are in use")
            table.append(self._free.pop())
        self._lengths[sequence_id] = start + n
        positions = np.arange(start, start + n)
        return np.asarray(table, np.int64)[positions // self.block_size] * self.block_size + (
            positions % self.block_size
        )

    def length(self, sequence_id):
        """Tokens of the sequence so far."""
        return self._lengths.get(sequence_id, 0)

    def table(self, sequence_id):
        """The sequence's block table, int32 [ceil(length / block_size)]."""
        return np.asarray(self._tables.get(sequence_id, []), np.int32)

    def free(self, sequence_id):
        """Gives the sequence's blocks back."""
        self._free.extend(reversed(self._tables.pop(sequence_id, [])))
        self._lengths.pop(sequence_id, None)


class StepBatchBuilder:
    """Collects the rows of one step batch: one step of one layer, one row a sequence.

    A column that no row gives is left out of the batch; None is a null list (query, key, value) or an empty
    one. Shapes of one row, with n_q query tokens and n_k new
    tokens:

    =============== ======================================================================================
    query           [n_q, num_heads, head_size], floats or stored bits
    key, value      [n_k, num_kv_heads, head_size], or None: nothing to write
    seq_len         int, tokens in the cache after this step's update; optional with managed block tables
    slot_mapping    [n_k] integers, block * block_size + offset, negative: skipped (external block tables)
    block_table     [>= ceil(seq_len / block_size)] integers (external block tables)
    position        [n_q] integers, [n_k] in a row without queries (layers with rope)
    =============== ======================================================================================

    Block tables are external with `slot_mapping` and `block_table`, and managed by the operator without. Then
    these mean something too:

    ================== ===================================================================================
    end_of_sequence    bool, the sequence's last row in this layer
    parent_sequence_id id of the sequence to fork from, in the first rows of the child; or None
    token_ids          [n_k] integers: sequences whose ids begin alike share blocks
    sequence_group     rows of one group go to one shard; default: each sequence by itself
    ================== ===================================================================================

    Every other keyword argument of `add` becomes a column that passes through to the result.
    """

    def __init__(self, dtype="float32", layer=None):
        """`dtype` is float32, float16 or bfloat16; `layer` is the layer's name in the job file."""
        if dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
        self.dtype, self.layer = dtype, layer
        self._rows = []

    def __len__(self):
        return len(self._rows)

    def add(self, sequence_id, **columns):
        """Adds one row; see the class for names and shapes. Returns the builder."""
        key, value = columns.get("key"), columns.get("value")
        if (key is None) != (value is None) or (key is not None and len(key) != len(value)):
            raise ValueError(f"row {len(self._rows)}: key and value must have the same number of tokens")
        slots, keys = columns.get("slot_mapping"), 0 if key is None else len(key)
        if slots is not None and len(slots) != keys:
            raise ValueError(f"row {len(self._rows)}: slot_mapping has {len(slots)} entries for {keys} keys")
        self._rows.append({"sequence_id": sequence_id, **columns})
        return self

    def build(self, num_heads=None, num_kv_heads=None, head_size=None):
        """The rows as a pyarrow.RecordBatch.

        The sizes are taken from the arrays; give them for a batch in which every row of a column is None.
        """
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        fields, arrays = [], []

        def put(field, array):
            fields.append(field)
            arrays.append(array)

        ids = [row["sequence_id"] for row in self._rows]
        id_type = _id_type(ids, "sequence_id")
        put(pa.field("sequence_id", id_type, nullable=False), _ids(ids, id_type, "sequence_id"))
        if self.layer is not None:
            put(pa.field("layer", pa.utf8(), nullable=False), pa.array([self.layer] * len(ids), pa.utf8()))
        for name in names:
            values = [row.get(name) for row in self._rows]
            if name == "sequence_id":
                continue
            if name in ("parent_sequence_id", "sequence_group"):
                given = [value for value in values if value is not None]
                own_type = id_type if name == "parent_sequence_id" else _id_type(given, name)
                array = _ids(values, own_type, name)
                put(pa.field(name, array.type), array)
            elif name in ("query", "key", "value"):
                shape = (num_heads if name == "query" else num_kv_heads, head_size)
                if None in shape:
                    first = next((value for value in values if value is not None), None)
                    if first is None:
                        raise ValueError(f"column {name}: no row has any, so build() needs its sizes")
                    shape = np.shape(first)[1:]
                    if len(shape) != 2:
                        got = list(np.shape(first))
                        raise ValueError(f"column {name}: expected [n, heads, head_size], got {got}")
                put(*tensor_list(values, shape, self.dtype, name))
            elif name == "seq_len":
                lengths = [
                    _integers([value], pa.int32(), f"column {name}, row {i}")
                    for i, value in enumerate(values)
                ]
                put(pa.field(name, pa.int32(), nullable=False), pa.array(np.concatenate(lengths), pa.int32()))
            elif name in ("slot_mapping", "block_table", "position", "token_ids"):
                wide = name in ("slot_mapping", "token_ids")
                put(*int_list(values, pa.int64() if wide else pa.int32(), name))
            elif name == "end_of_sequence":
                values = [bool(value) for value in values]
                put(pa.field(name, pa.bool_(), nullable=False), pa.array(values))
            else:
                array = pa.array(values)
                put(pa.field(name, array.type), array)
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def write_ipc(path, batches, kind="file", compression=None):
    """Writes record batches of one schema as an Arrow IPC file or stream; compression None, lz4 or zstd.

    The file has a name with `.tmp-` in it until it is complete: whoever watches the folder sees whole files.
    """
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise ValueError(f"{path}: expected at least one batch, got none")
    if kind not in ("file", "stream"):
        raise ValueError(f"kind: expected file or stream, got {kind}")
    options = pa.ipc.IpcWriteOptions(compression=compression)
    create = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with _complete_or_absent(path) as sink, create(sink, first.schema, options=options) as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


@contextlib.contextmanager
def _complete_or_absent(path):
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe cannot be renamed
        with open(path, "wb") as sink:
            yield sink
        return
    unfinished = f"{path}.tmp-{os.getpid()}"
    try:
        with open(unfinished, "wb") as sink:
            yield sink
        os.replace(unfinished, path)
    finally:
        pathlib.Path(unfinished).unlink(missing_ok=True)


def demo_job(args, rng):
    """The job (dict) that the command line describes."""
    layers = []
    for i in range(args.layers):
        layer = {"name": f"model.layers.{i}.self_attn", "num_heads": args.heads}
        layer |= {"num_kv_heads": args.kv_heads, "head_size": args.head_size}
        if args.scale is not None:
            layer["scale"] = args.scale
        if args.attn_type != "decoder":
            layer["attn_type"] = args.attn_type
        for key in ("sliding_window", "logits_soft_cap", "output_scale", "k_scale", "v_scale"):
            if getattr(args, key) is not None:
                layer[key] = getattr(args, key)
        if args.alibi:
            layer["alibi_slopes"] = [round(2 ** (-8 * (h + 1) / args.heads), 6) for h in range(args.heads)]
        if args.sinks:
            layer["sinks"] = [round(float(x), 4) for x in rng.normal(0, 1.5, args.heads)]
        if args.kv_cache_dtype != "auto":
            layer["kv_cache_dtype"] = args.kv_cache_dtype
        if args.share_kv and i > 0:
            layer["kv_sharing_target_layer_name"] = layers[0]["name"]
        if args.rope:
            rotary_dim = args.rotary_dim or args.head_size
            layer["rope"] = {"rotary_dim": rotary_dim, "max_position": 4096, "base": 10000.0}
            layer["rope"]["is_neox"] = args.rope == "neox"
        if args.return_lse:
            layer["return_lse"] = True
        layers.append(layer)
    kv_cache = {"block_size": args.block_size, "num_blocks": args.num_blocks, "dtype": "auto"}
    return {"kv_cache": kv_cache, "layers": layers}


class TokenSource:
    """Token ids of the demo's sequences, whose prompts begin alike, and the keys and values they have."""

    VOCABULARY = 50

    def __init__(self, args, count, rng):
        self.args, self.rng = args, rng
        self.prefix = rng.integers(0, self.VOCABULARY, args.shared_prefix)
        self.ids = [[] for _ in range(count)]
        self.tables = {}

    def fork(self, child, parent, length):
        """The child begins with the parent's first `length` tokens."""
        self.ids[child] = self.ids[parent][:length]

    def extend(self, sequence, n):
        """Adds `n` tokens: those of the common prefix first, then random ones."""
        ids = self.ids[sequence]
        for _ in range(n):
            shared = len(ids) < len(self.prefix)
            ids.append(int(self.prefix[len(ids)] if shared else self.rng.integers(0, self.VOCABULARY)))

    def tensors(self, layer, sequence, start, n):
        """Key and value [n, num_kv_heads, head_size] of tokens: a table's entries by id and layer."""
        shape = (2, self.VOCABULARY, self.args.kv_heads, self.args.head_size)
        if layer not in self.tables:
            self.tables[layer] = self.rng.standard_normal(shape, np.float32)
        return self.tables[layer][:, self.ids[sequence][start : start + n]]


def demo_batches(args, job, rng):
    """Yields random step batches: prompts in chunks, then decode steps, mixed, one batch a step and layer.

    Query, key and value are N(0, 1).
    """
    kind, h, hkv, d = args.attn_type, args.heads, args.kv_heads, args.head_size
    external = kind in ("decoder", "encoder_decoder") and not args.managed
    blocks = BlockAllocator(args.num_blocks, args.block_size, seed=args.seed) if external else None
    beams = args.beams if args.managed else 1
    count = args.sequences * beams
    prompts = np.tile(rng.integers(1, args.max_prompt + 1, args.sequences) + args.shared_prefix, beams)
    starts = np.tile(rng.integers(0, max(1, args.steps // 2), args.sequences), beams)
    done = [0] * count
    cross = [0] * count
    names = [f"seq-{s}" if args.string_ids else 1000 + s for s in range(count)]
    tokens = TokenSource(args, count, rng) if args.managed and kind == "decoder" else None
    for step in range(args.steps):
        rows = []
        forks = {}
        for s in range(count):
            if step < starts[s]:
                continue
            parent = s % args.sequences
            if s != parent and done[s] == 0:
                if done[parent] <= prompts[parent] or parent in forks.values():
                    continue
                done[s], forks[s] = done[parent] - 1, parent  # what it had before this step
                tokens.fork(s, parent, done[s])
            n = int(min(args.chunk, prompts[s] - done[s])) if done[s] < prompts[s] else 1
            n_k = n
            if kind == "encoder_decoder":
                n_k = 0 if cross[s] else int(rng.integers(1, args.max_prompt + 1))
                cross[s] += n_k
            slots = blocks.append(s, n_k) if external else None
            if tokens:
                tokens.extend(s, n)
            rows.append((s, n, n_k, done[s], slots))
            done[s] += n
        if not rows:
            continue
        for layer in job["layers"]:
            builder = StepBatchBuilder(dtype=args.dtype, layer=layer["name"])
            shares = "kv_sharing_target_layer_name" in layer
            for s, n, n_k, start, slots in rows:
                columns = {"step": step}
                write = n_k and not (shares and not args.rope)
                length = cross[s] if kind == "encoder_decoder" else start + n
                if kind.startswith("encoder") and kind != "encoder_decoder":
                    length = n
                if external:
                    columns["slot_mapping"] = slots if write else []
                    columns["block_table"] = blocks.table(s)
                elif args.managed:
                    columns["end_of_sequence"] = step == args.steps - 1
                if "rope" in layer:
                    columns["position"] = np.arange(start, start + n)
                key = rng.standard_normal((n_k, hkv, d), np.float32) if write else None
                value = rng.standard_normal((n_k, hkv, d), np.float32) if write else None
                if tokens:
                    if beams > 1:
                        columns["parent_sequence_id"] = names[forks[s]] if s in forks else None
                        columns["sequence_group"] = s % args.sequences
                    if args.shared_prefix and write:
                        columns["token_ids"] = tokens.ids[s][start : start + n]
                        key, value = tokens.tensors(layer["name"], s, start, n)
                builder.add(
                    names[s],
                    query=rng.standard_normal((n, h, d), np.float32),
                    key=key,
                    value=value,
                    seq_len=length,
                    **columns,
                )
            yield builder.build(h, hkv, d)


def one_schema(batches):
    """Splits batches into groups of equal schemas, in order of first appearance: [(schema, [batch])]."""
    groups = []
    for batch in batches:
        for schema, group in groups:
            if schema.equals(batch.schema, check_metadata=True):
                group.append(batch)
                break
        else:
            groups.append((batch.schema, [batch]))
    return groups


def write_steps(folder, stem, batches, kind="file", compression=None):
    """Writes `stem`.arrow, or a folder `stem`/ of numbered files if the batches have several schemas.

    The order of the batches is kept within each schema. Returns the path.
    """
    groups = one_schema(batches)
    if not groups:
        raise ValueError(f"{stem}: expected at least one batch, got none")
    single = pathlib.Path(folder) / f"{stem}.arrow"
    for other in (single, single.with_suffix("")):
        if other.is_dir() or (len(groups) > 1 and other.exists()):
            raise FileExistsError(f"{other} is there from an earlier run: remove it first")
    if len(groups) == 1:
        path = single
        write_ipc(path, groups[0][1], kind, compression)
        return path
    path = pathlib.Path(folder) / stem
    path.mkdir(parents=True)
    for i, (_, group) in enumerate(groups):
        write_ipc(path / f"{i:02d}.arrow", group, kind, compression)
    return path


def _parser():
    parser = command_line.parser(
        "broadhead-produce",
        "Writes random step batches (prefill chunks and decode steps mixed) and their job file.",
        EXAMPLE,
    )
    parser.add_argument("output", help="folder to write job.yaml and steps.arrow to")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float16",
        help="type of query, key and value",
    )
    parser.add_argument("--layers", type=int, default=2, help="number of layers")
    parser.add_argument("--heads", type=int, default=8, help="query heads per layer")
    parser.add_argument("--kv-heads", type=int, default=2, help="KV heads per layer")
    parser.add_argument("--head-size", type=int, default=64, help="elements per head")
    parser.add_argument("--block-size", type=int, default=16, help="tokens per block of the KV cache")
    parser.add_argument("--num-blocks", type=int, default=256, help="blocks of a layer's pool")
    parser.add_argument(
        "--sequences",
        type=int,
        default=8,
        help="number of sequences, which begin in the first half of the steps",
    )
    parser.add_argument("--steps", type=int, default=16, help="steps of each layer, one batch per step")
    parser.add_argument("--max-prompt", type=int, default=100, help="tokens of the longest prompt")
    parser.add_argument(
        "--chunk", type=int, default=32, help="largest number of prompt tokens of a sequence in one step"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers")
    parser.add_argument("--format", choices=["file", "stream"], default="file", help="Arrow IPC format")
    parser.add_argument(
        "--compression", choices=["none", "lz4", "zstd"], default="none", help="compression of the batches"
    )
    parser.add_argument(
        "--managed",
        action="store_true",
        help="use managed block tables: leave out block_table and slot_mapping",
    )
    parser.add_argument(
        "--beams",
        type=int,
        default=1,
        help="with --managed: number of sequences that each sequence is forked into",
    )
    parser.add_argument(
        "--shared-prefix",
        type=int,
        default=0,
        help="with --managed: number of common tokens at the start of every prompt; token ids are sent",
    )
    parser.add_argument("--string-ids", action="store_true", help="use utf8 sequence ids instead of int64")
    layer = parser.add_argument_group("layer options (see the job file reference)")
    layer.add_argument(
        "--attn-type",
        choices=["decoder", "encoder", "encoder_only", "encoder_decoder"],
        default="decoder",
        help="which keys a query sees and where they are stored",
    )
    layer.add_argument("--scale", type=float, help="factor of the scores; default: head size ** -0.5")
    layer.add_argument(
        "--sliding-window", type=int, help="tokens that a query sees, including its own; default: all"
    )
    layer.add_argument("--logits-soft-cap", type=float, help="c in c * tanh(score / c); default: none")
    layer.add_argument("--alibi", action="store_true", help="ALiBi with the usual slopes, powers of two")
    layer.add_argument("--sinks", action="store_true", help="a random sink per head")
    layer.add_argument(
        "--kv-cache-dtype",
        choices=["auto", "float16", "bfloat16", "float32", "fp8", "fp8_e4m3", "fp8_e5m2"],
        default="auto",
        help="type of the cache; auto: the type of the tensors",
    )
    layer.add_argument("--k-scale", type=float, help="fp8 caches: divisor of stored keys; default: 1")
    layer.add_argument("--v-scale", type=float, help="fp8 caches: divisor of stored values; default: 1")
    layer.add_argument(
        "--output-scale", type=float, help="fp8 results: divisor of the output; default: results are not fp8"
    )
    layer.add_argument(
        "--rope", choices=["neox", "gptj"], help="rotary embedding with NeoX or GPT-J pairs; default: none"
    )
    layer.add_argument("--rotary-dim", type=int, help="elements that RoPE rotates; default: the head size")
    layer.add_argument("--share-kv", action="store_true", help="later layers read the first one's cache")
    layer.add_argument("--return-lse", action="store_true", help="add an lse column to the results")
    return parser


@command_line.command
def main(argv=None):
    """Command line entry; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.beams > 1 or args.shared_prefix) and not (args.managed and args.attn_type == "decoder"):
        parser.error("--beams and --shared-prefix need --managed, and decoder layers")
    if args.rope and args.attn_type == "encoder_decoder":
        parser.error("--rope needs as many keys as queries, which encoder_decoder layers do not have")
    rng = np.random.default_rng(args.seed)
    job = jobfile.checked(demo_job(args, rng))
    folder = pathlib.Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    compression = None if args.compression == "none" else args.compression
    batches = list(demo_batches(args, job, rng))
    (folder / "job.yaml").write_text(jobfile.dump_job(job), encoding="utf-8")
    path = write_steps(folder, "steps", batches, args.format, compression)
    rows = sum(batch.num_rows for batch in batches)
    print(f"{path}: {len(batches)} batches, {rows} rows; {folder / 'job.yaml'}: {len(job['layers'])} layers")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
