# SPDX-License-Identifier: Apache-2.0
"""Checks result batches against a float64 NumPy reference of the step format or a stored expectation.

The error of a row is max|result - expected| / max(1, max|expected|); the default tolerance follows from the
result's dtype. The command exits with 1 if any row is missing, surplus, of another shape or beyond tolerance.
"""

import argparse
import math

import numpy as np

from broadhead_samples import command_line, dtypes, jobfile
from broadhead_samples.consume import ResultRow, read_batches, read_rows, require_columns, tensor_rows
from broadhead_samples.rope import rotate

EXAMPLE = """\
example:
  broadhead-check --job job.yaml --steps steps.arrow out.arrow     # computes the reference, then compares
  broadhead-check --expected expected.arrow results/               # compares with a stored expectation
"""

#: Largest allowed error by the dtype of the output
TOLERANCE = {
    "float64": 1e-5,
    "float32": 1e-5,
    "float16": 2e-3,
    "bfloat16": 1.6e-2,
    "float8_e4m3fn": 7e-2,
}

_STORED_AS = {"fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
_FLOAT8_MAX = 448.0
_INDEX_COLUMNS = ("slot_mapping", "block_table", "position")


def quantize(values, dtype):
    """Rounds an array once to `dtype` and widens it again; same shape, float64."""
    return dtypes.decode(dtypes.encode(values, dtype), dtype).astype(np.float64)


class Cache:
    """One layer's KV cache: blocks of [block_size, num_kv_heads, head_size], zero until written."""

    def __init__(self, block_size, num_kv_heads, head_size):
        self.shape = (block_size, num_kv_heads, head_size)
        self.blocks = {}
        self.sequences = {}

    def write(self, slots, key, value):
        """Stores key and value [n_k, num_kv_heads, head_size] at slots [n_k]; negative slots are skipped."""
        if len(slots) != len(key):
            raise ValueError(f"column slot_mapping: {len(slots)} entries, expected {len(key)}")
        for token, slot in enumerate(slots):
            if slot >= 0:
                pair = self.blocks.setdefault(slot // self.shape[0], np.zeros((2, *self.shape)))
                pair[0, slot % self.shape[0]] = key[token]
                pair[1, slot % self.shape[0]] = value[token]

    def gather(self, table, length):
        """The first `length` positions of a block table: key and value [length, num_kv_heads, head_size]."""
        if length is None or not 0 <= length <= len(table) * self.shape[0]:
            raise ValueError(f"column seq_len: {length}, expected 0 to what {len(table)} blocks hold")
        used = table[: -(-length // self.shape[0])]
        empty = np.zeros((2, *self.shape))
        pairs = [self.blocks.get(int(block), empty) for block in used]
        both = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0, *self.shape[1:]))
        return both[0, :length], both[1, :length]


class Reference:
    """Float64 reference of a job: feed it every step batch in order; it keeps the caches between steps."""

    def __init__(self, job):
        """`job` is a dict as from `jobfile.load_job`."""
        self.kv_cache = job.get("kv_cache") or {}
        self.layers = {layer["name"]: layer for layer in job["layers"]}
        self.caches = {}
        self.progress = {}  # (layer, sequence) -> tokens, for managed block tables
        self.ended = {}  # (layer, sequence) whose last row has come -> tokens that other layers have then
        for name, layer in self.layers.items():
            target = layer.get("kv_sharing_target_layer_name")
            if target and target not in self.caches:
                raise ValueError(f"layer '{name}': expected to share with an earlier layer, got '{target}'")
            size = (self.kv_cache.get("block_size", 16), layer["num_kv_heads"], layer["head_size"])
            self.caches[name] = self.caches[target] if target else Cache(*size)

    def step(self, batch):
        """One step batch -> its ResultRows: `output` [n_q, num_heads, head_size], `lse` [n_q, num_heads]."""
        names = batch.schema.names
        if len(set(names)) < len(names):
            raise ValueError(f"expected columns of different names, got {', '.join(names)}")
        require_columns(batch, "sequence_id", *(["layer"] if len(self.layers) > 1 else []))
        if not batch.num_rows:
            return []
        name = batch.column("layer")[0].as_py() if "layer" in names else next(iter(self.layers))
        if name not in self.layers:
            raise ValueError(f"column layer: '{name}' is not a layer of the job file")
        layer, rows = self.layers[name], batch.num_rows
        encoder = _is_encoder(layer)
        if layer.get("rope"):
            require_columns(batch, "position")
        if encoder:
            require_columns(batch, "query", "key", "value")
        elif not {"key", "value"}.isdisjoint(names):
            require_columns(batch, "key", "value")
        else:
            require_columns(batch, "query")
        if not encoder and ("block_table" in names or "slot_mapping" in names):
            require_columns(batch, "block_table", "slot_mapping", "seq_len")
        ids = batch.column("sequence_id").to_pylist()
        query, dtype = _tensors(batch, "query", (rows, layer["num_heads"], layer["head_size"]))
        key, key_dtype = _tensors(batch, "key", (rows, layer["num_kv_heads"], layer["head_size"]))
        value, _ = _tensors(batch, "value", (rows, layer["num_kv_heads"], layer["head_size"]))
        dtype = dtype or key_dtype
        lists = {c: _integers(batch.column(c), c) for c in _INDEX_COLUMNS if c in names}
        lengths = batch.column("seq_len").to_pylist() if "seq_len" in names else [None] * rows
        ends = batch.column("end_of_sequence").to_pylist() if "end_of_sequence" in names else [False] * rows
        parents = (
            batch.column("parent_sequence_id").to_pylist() if "parent_sequence_id" in names else [None] * rows
        )
        managed = not encoder and "block_table" not in names
        for sequence_id, parent in zip(ids, parents, strict=True):
            if managed and parent is not None:  # it may go on in the same batch
                self._begin(layer, sequence_id, parent)
        results = []
        for r in range(rows):
            q, k, v = query[r], key[r], value[r]
            if layer.get("rope"):
                position, tokens = np.asarray(lists["position"][r] or [], np.int64), len(q) or len(k)
                if len(position) != tokens or len(k) not in (0, tokens):
                    raise ValueError(
                        f"row {r}: expected one position and, if any, one key for each of {tokens} tokens, "
                        f"got {len(position)} positions and {len(k)} keys"
                    )
                q = quantize(rotate(q, position, layer["rope"]), dtype) if len(q) else q
                k = quantize(rotate(k, position, layer["rope"]), dtype) if len(k) else k
            m = lengths[r]
            if encoder:
                m = len(k)
            elif not managed:
                self._append(layer, dtype, k, v, lists["slot_mapping"][r] or [])
                k, v = self.caches[name].gather(lists["block_table"][r] or [], m)
            else:
                self._begin(layer, ids[r], parents[r])
                if m is None and "seq_len" in names:
                    raise ValueError(f"column seq_len: row {r} is null, expected an int32")
                at_once = ends[r] and not len(q) and not len(k)
                before = self.progress.get((name, ids[r]), 0)
                k, v = self._managed(layer, dtype, ids[r], len(q), k, v, m)
                m = len(k)
                if ends[r]:
                    self.ended[name, ids[r]] = m if m > before else math.inf
                if at_once or self._has_ended(ids[r]):
                    self._forget(ids[r])
            output, lse = attend(layer, q, k, v, m)
            results.append(ResultRow(ids[r], name if "layer" in names else "", output, lse, dtype, {}))
        return results

    def _stored(self, layer, dtype, key, value):
        """Key and value as the cache gives them back: rounded to its dtype, fp8 with the layer's scales."""
        cache_dtype = layer.get("kv_cache_dtype", self.kv_cache.get("dtype", "auto"))
        stored = dtype if cache_dtype == "auto" else _STORED_AS.get(cache_dtype, cache_dtype)
        pair = []
        for tensor, scale_name in ((key, "k_scale"), (value, "v_scale")):
            scale = np.float32(layer.get(scale_name, 1.0)) if stored.startswith("float8") else np.float32(1)
            pair.append(quantize(tensor.astype(np.float32) / scale, stored) * float(scale))
        return pair

    def _append(self, layer, dtype, key, value, slots):
        if len(key) and not layer.get("kv_sharing_target_layer_name"):
            self.caches[layer["name"]].write(slots, *self._stored(layer, dtype, key, value))

    def _begin(self, layer, sequence_id, parent):
        """Begins a sequence with what its parent has, if it names one.

        That is the tokens in all layers that write and that the parent has been to.
        """
        if parent is None or self._is_known(sequence_id):
            return
        if not self._is_known(parent):
            raise ValueError(f"column parent_sequence_id: expected a sequence that has begun, got {parent}")
        for cross in (False, True):
            alike = {n: x for n, x in self.layers.items() if _is_cross(x) == cross and not _is_encoder(x)}
            writers = [n for n, x in alike.items() if not x.get("kv_sharing_target_layer_name")]
            tokens = {n: self.progress[n, parent] for n in writers if self.progress.get((n, parent))}
            length = min(tokens.values(), default=0)
            for name in tokens:
                sequences = self.caches[name].sequences
                sequences[sequence_id] = tuple(tensor[:length] for tensor in sequences[parent])
            for name in alike:
                self.progress[name, sequence_id] = length

    def _is_known(self, sequence_id):
        return any((name, sequence_id) in self.progress for name in self.layers)

    def _managed(self, layer, dtype, sequence_id, num_queries, key, value, seq_len):
        """Appends to the sequence's own key and value [m, num_kv_heads, head_size] and returns both.

        m must be `seq_len`, unless that is None.
        """
        place = (layer["name"], sequence_id)
        sequences = self.caches[layer["name"]].sequences
        shares = layer.get("kv_sharing_target_layer_name")
        empty = np.zeros((0, layer["num_kv_heads"], layer["head_size"]))
        k, v = sequences.get(sequence_id, (empty, empty))
        if not num_queries and not len(key) and (place in self.ended or not self._is_known(sequence_id)):
            return empty, empty  # padding or an end, whatever its seq_len
        if place in self.ended:
            raise ValueError(
                f"column sequence_id: sequence {sequence_id} has ended in layer {layer['name']} "
                "and not in all others, expected its last rows there first"
            )
        cross = _is_cross(layer)
        start, new = self.progress.get(place, 0), len(key)
        if shares and cross:
            start, new = len(k), 0
        elif shares:
            new = max(num_queries, new)
            if seq_len is not None:
                start = max(start, seq_len - new)  # the rows between brought keys and no queries
        end = start + new
        if seq_len not in (None, end):
            raise ValueError(
                f"column seq_len: sequence {sequence_id} has {seq_len}, "
                f"expected {end} ({start} tokens in the cache and {new} new ones)"
            )
        if len(key) and not shares:
            new_k, new_v = self._stored(layer, dtype, key, value)
            k, v = np.concatenate([k, new_k]), np.concatenate([v, new_v])
            sequences[sequence_id] = (k, v)
        if len(k) < end:
            raise ValueError(
                f"column sequence_id: sequence {sequence_id} has {len(k)} tokens in the cache that layer "
                f"{layer['name']} reads, expected {end}"
            )
        self.progress[place] = end
        return k[:end], v[:end]

    def _has_ended(self, sequence_id):
        """Whether every layer has seen its last row, or as many tokens as such rows have brought."""
        cached = [n for n, layer in self.layers.items() if not _is_encoder(layer)]
        ended = [n for n in cached if (n, sequence_id) in self.ended]
        tokens = {n: self.progress.get((n, sequence_id), 0) for n in cached if not _is_cross(self.layers[n])}
        end = max((self.ended[n, sequence_id] for n in ended if n in tokens), default=0)
        return bool(ended) and all(n in ended or 0 < end <= tokens.get(n, 0) for n in cached)

    def _forget(self, sequence_id):
        for name, cache in self.caches.items():
            self.ended.pop((name, sequence_id), None)
            self.progress.pop((name, sequence_id), None)
            cache.sequences.pop(sequence_id, None)


def _is_encoder(layer):
    return layer.get("attn_type", "decoder") in ("encoder", "encoder_only")


def _is_cross(layer):
    return layer.get("attn_type", "decoder") == "encoder_decoder"


def _integers(column, name):
    """The rows of a list column; a null list is None."""
    if column.flatten().null_count:
        raise ValueError(f"column {name}: expected no nulls inside lists, got some")
    return column.to_pylist()


def _tensors(batch, name, shape):
    """A tensor column as float64 arrays [n, heads, head_size]; empty arrays if the column is absent."""
    if name not in batch.schema.names:
        return [np.zeros((0, *shape[1:]))] * shape[0], None
    rows, dtype = tensor_rows(batch, name)
    return [row.reshape(-1, *shape[1:]).astype(np.float64) for row in rows], dtype


def attend(layer, query, key, value, length):
    """One row: query [n_q, h, d], key and value [length, h_kv, d] -> output [n_q, h, d] and lse [n_q, h]."""
    n, heads, head_size = query.shape
    kv_heads = layer["num_kv_heads"]
    group = heads // kv_heads
    decoder = layer.get("attn_type", "decoder") == "decoder"
    where_q = np.arange(n)[:, None] + (length - n if decoder else 0)
    distance = np.arange(length)[None, :] - where_q
    visible = distance <= 0 if decoder else np.ones((n, length), bool)
    if layer.get("sliding_window"):
        visible &= np.abs(distance) < layer["sliding_window"]
    grouped = query.reshape(n, kv_heads, group, head_size)
    scores = np.einsum("nkgd,mkd->kgnm", grouped, key).reshape(heads, n, length)
    scores = scores * layer.get("scale", head_size**-0.5)
    cap = layer.get("logits_soft_cap")
    if cap:
        scores = cap * np.tanh(scores / cap)
    if layer.get("alibi_slopes"):
        scores = scores + np.asarray(layer["alibi_slopes"])[:, None, None] * distance
    scores = np.where(visible, scores, -np.inf)
    sink = np.full((heads, n, 1), -np.inf)
    if layer.get("sinks"):
        sink[:] = np.asarray(layer["sinks"], np.float64)[:, None, None]
    peak = np.concatenate([scores, sink], axis=2).max(axis=2, keepdims=True)
    peak = np.where(np.isfinite(peak), peak, 0.0)
    weight = np.exp(scores - peak)
    total = weight.sum(axis=2, keepdims=True) + np.exp(sink - peak)
    share = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    output = np.einsum("kgnm,mkd->nkgd", share.reshape(kv_heads, group, n, length), value)
    with np.errstate(divide="ignore"):
        lse = np.log(total[..., 0]) + peak[..., 0]
    return output.reshape(n, heads, head_size), lse.T


def reference_rows(job, steps):
    """Yields the reference's ResultRow for every row of the step batches at path `steps`."""
    reference = Reference(job)
    for i, batch in enumerate(read_batches(steps)):
        try:
            rows = reference.step(batch)
        except ValueError as error:
            raise ValueError(f"{steps}, batch {i}: {error}") from error
        yield from rows


def keyed(rows):
    """(sequence_id, layer, how many rows of this sequence and layer came before) -> ResultRow."""
    seen, result = {}, {}
    for row in rows:
        pair = (row.sequence_id, row.layer)
        seen[pair] = seen.get(pair, -1) + 1
        result[(*pair, seen[pair])] = row
    return result


def error_of(expected, result):
    """Largest error of two arrays of one shape, relative to max(1, max|expected|); NaN counts as infinite."""
    if not expected.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.where(expected == result, 0.0, np.abs(expected - result))
    finite = np.abs(expected[np.isfinite(expected)])
    worst = difference.max() if not np.isnan(difference).any() else np.inf
    return float(worst) / max(1.0, float(finite.max()) if finite.size else 1.0)


class Comparison:
    """Compares result rows with expected rows and counts by layer."""

    def __init__(self, layers=None, tolerance=None):
        """`layers`: the job's {name: layer}, for output_scale; `tolerance` overrides the dtype's."""
        self.layers, self.tolerance = layers or {}, tolerance
        self.by_layer = {}
        self.problems = []

    def run(self, expected, result):
        """Compares two dicts as from `keyed`."""
        for key in expected.keys() - result.keys():
            self.problems.append(f"{_name(key)}: missing in the result")
        for key in result.keys() - expected.keys():
            self.problems.append(f"{_name(key)}: not expected")
        for key, want in expected.items():
            if key in result:
                self._row(key, want, result[key])
        return self

    def _row(self, key, want, got):
        expected, output = np.asarray(want.output, np.float64), np.asarray(got.output, np.float64)
        expected, output = (a.reshape(len(a), math.prod(a.shape[1:])) for a in (expected, output))
        tolerance = TOLERANCE[got.dtype] if self.tolerance is None else self.tolerance
        fresh = {"rows": 0, "tokens": 0, "worst": 0.0, "lse": None, "bad": 0}
        entry = self.by_layer.setdefault(key[1], fresh)
        entry["rows"], entry["tokens"] = entry["rows"] + 1, entry["tokens"] + len(expected)
        entry["tolerance"], entry["dtype"] = tolerance, got.dtype
        if expected.shape != output.shape:
            entry["bad"] += 1
            self.problems.append(f"{_name(key)}: expected shape {expected.shape}, got {output.shape}")
            return
        if got.dtype == "float8_e4m3fn":
            scale = self.layers.get(key[1] or next(iter(self.layers), None), {}).get("output_scale", 1.0)
            expected, output = np.clip(expected, -_FLOAT8_MAX * scale, _FLOAT8_MAX * scale), output * scale
        error = error_of(expected, output)
        if want.lse is not None and got.lse is not None:
            lse_error = error_of(np.asarray(want.lse, np.float64), np.asarray(got.lse, np.float64))
            entry["lse"] = max(entry["lse"] or 0.0, lse_error)
            lse_tolerance = TOLERANCE[want.dtype] if self.tolerance is None else self.tolerance
            if lse_error > lse_tolerance:
                entry["bad"] += 1
                self.problems.append(f"{_name(key)}: lse error {lse_error:.3g} is above {lse_tolerance:g}")
        entry["worst"] = max(entry["worst"], error)
        if error > tolerance:
            entry["bad"] += 1
            self.problems.append(f"{_name(key)}: error {error:.3g} is above {tolerance:g}")

    def report(self, limit=5):
        """Prints the table; returns True if everything agreed."""
        width = max([5, *(len(name) for name in self.by_layer)])
        title = f"{'layer':<{width}} {'rows':>6} {'tokens':>7} {'worst':>9} {'lse':>9} {'allowed':>8}  dtype"
        print(title)
        for name, e in self.by_layer.items():
            lse = "-" if e["lse"] is None else f"{e['lse']:.2g}"
            bad = f"   {e['bad']} BAD" if e["bad"] else ""
            counts = f"{name:<{width}} {e['rows']:>6} {e['tokens']:>7}"
            print(f"{counts} {e['worst']:>9.2g} {lse:>9} {e['tolerance']:>8g}  {e['dtype']}{bad}")
        for problem in self.problems[:limit]:
            print(problem)
        if len(self.problems) > limit:
            print(f"... and {len(self.problems) - limit} more")
        rows = sum(entry["rows"] for entry in self.by_layer.values())
        good = bool(rows) and not self.problems
        print(f"{rows} rows compared: {'all agree' if good else 'FAILED'}")
        return good


def _name(key):
    return f"sequence {key[0]}, layer '{key[1]}', its row {key[2]}"


def _tolerance(text):
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


@command_line.command
def main(argv=None):
    """Command line entry; returns the exit code."""
    parser = command_line.parser(
        "broadhead-check",
        "Compares result batches with the job's float64 reference or with a stored expectation.",
        EXAMPLE,
    )
    parser.add_argument(
        "result", help="result batches: Arrow IPC file or stream, or a folder of them, sub-folders included"
    )
    parser.add_argument("--job", help="job file (needed with --steps, and for output_scale)")
    parser.add_argument("--steps", help="step batches to compute the reference from: file, stream or folder")
    parser.add_argument("--expected", help="stored expectation (column 'expected')")
    parser.add_argument("--tolerance", type=_tolerance, help="largest allowed error (default: by dtype)")
    args = parser.parse_args(argv)
    if bool(args.steps) == bool(args.expected) or (args.steps and not args.job):
        parser.error("give either --job and --steps, or --expected")
    job = jobfile.load_job(args.job) if args.job else None
    layers = {layer["name"]: layer for layer in job["layers"]} if job else None
    rows = reference_rows(job, args.steps) if args.steps else read_rows(args.expected, "expected")
    comparison = Comparison(layers, args.tolerance).run(keyed(rows), keyed(read_rows(args.result)))
    return 0 if comparison.report() else 1


if __name__ == "__main__":
    raise SystemExit(main())
