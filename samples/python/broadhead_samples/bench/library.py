# SPDX-License-Identifier: Apache-2.0
"""The part of the C ABI (native/include/broadhead/broadhead.h) that a benchmark needs, by ctypes."""

import contextlib
import ctypes

ABI_VERSION = 3

#: dtype label -> bh_dtype
DTYPE_CODES = {"float32": 1, "float16": 2, "bfloat16": 3}


class _Error(ctypes.Structure):
    _fields_ = (("code", ctypes.c_int32), ("row", ctypes.c_int64), ("message", ctypes.c_char * 1000))


class _EngineOptions(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("backend", ctypes.c_char_p),
        ("threads", ctypes.c_int32),
        ("device", ctypes.c_int32),
    )


class _EngineInfo(ctypes.Structure):
    _fields_ = (
        ("backend", ctypes.c_char * 16),
        ("tier", ctypes.c_char * 16),
        ("device", ctypes.c_char * 128),
        ("reason", ctypes.c_char * 256),
        ("threads", ctypes.c_int32),
        ("free_memory", ctypes.c_int64),
        ("overlaps", ctypes.c_int32),
    )


class _CacheOptions(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("num_blocks", ctypes.c_int64),
        ("block_size", ctypes.c_int32),
        ("num_kv_heads", ctypes.c_int32),
        ("head_size", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )


class _LayerOptions(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("num_heads", ctypes.c_int32),
        ("num_kv_heads", ctypes.c_int32),
        ("head_size", ctypes.c_int32),
        ("attn_type", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("sliding_window", ctypes.c_int64),
        ("logits_soft_cap", ctypes.c_float),
        ("alibi_slopes", ctypes.c_void_p),
        ("sinks", ctypes.c_void_p),
        ("k_scale", ctypes.c_float),
        ("v_scale", ctypes.c_float),
        ("output_scale", ctypes.c_float),
        ("return_lse", ctypes.c_int32),
        ("read_only_cache", ctypes.c_int32),
        ("rope", ctypes.c_void_p),
    )


class ArrowArray(ctypes.Structure):
    """A struct ArrowArray of the Arrow C Data Interface."""


ArrowArray._fields_ = (
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.c_void_p),
    ("children", ctypes.POINTER(ctypes.POINTER(ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
)


class _ArrowSchema(ctypes.Structure):
    _fields_ = (
        ("contents", ctypes.c_void_p * 7),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    )


def _export(batch):
    array, schema = ArrowArray(), _ArrowSchema()
    batch._export_to_c(ctypes.addressof(array), ctypes.addressof(schema))
    return array, schema


def _release(struct):
    if struct.release:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(struct.release)(ctypes.addressof(struct))


class _Loan:
    """Copies of an exported array's structs, which each step may mark as released."""

    def __init__(self, array, release):
        exported = [array]
        for struct in exported:  # which grows
            exported += [struct.children[i].contents for i in range(struct.n_children)]
        self._structs = (ArrowArray * len(exported))(*exported)
        self._pointers = []
        child = 1
        for struct in self._structs:
            struct.release = release
            children = [ctypes.pointer(self._structs[child + i]) for i in range(struct.n_children)]
            struct.children = (ctypes.POINTER(ArrowArray) * len(children))(*children)
            self._pointers.append(struct.children)
            child += len(children)
        self._unreleased = bytes(self._structs)

    def fresh(self):
        """Pointer to the first struct; none is released."""
        ctypes.memmove(self._structs, self._unreleased, len(self._unreleased))
        return self._structs


class Library:
    """An opened libbroadhead.so and what was made with it; a context manager that frees it all."""

    def __init__(self, path, threads):
        """Opens the library and an engine on `threads` threads."""
        self._library = ctypes.CDLL(str(path))
        version = self._library.bh_abi_version()
        if version != ABI_VERSION:
            raise ValueError(f"{path}: expected ABI version {ABI_VERSION}, got {version}")
        self._library.bh_borrowed_release.restype = ctypes.c_int64
        self._library.bh_cache_block_bytes.restype = ctypes.c_int64
        self._borrowed_release = self._library.bh_borrowed_release()
        self._error = _Error()
        self._made = contextlib.ExitStack()
        self._nanoseconds = ctypes.c_int64()
        options = _EngineOptions(ctypes.sizeof(_EngineOptions), b"auto", threads, 0)
        self._engine = self._create("engine", ctypes.byref(options))

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self._made.close()

    def _call(self, name, *arguments):
        code = getattr(self._library, name)(*arguments, ctypes.byref(self._error))
        if code != 0:
            row = f"row {self._error.row}: " if self._error.row >= 0 else ""
            raise ValueError(f"{name}: {row}{self._error.message.decode()}")

    def _create(self, kind, *arguments):
        handle = ctypes.c_void_p()
        self._call(f"bh_{kind}_create", *arguments, ctypes.byref(handle))
        self._made.callback(getattr(self._library, f"bh_{kind}_destroy"), handle)
        return handle

    def describe(self):
        """What computes, in one line."""
        info = _EngineInfo()
        self._library.bh_engine_describe(self._engine, ctypes.byref(info))
        return (
            f"backend {info.backend.decode()}, tier {info.tier.decode()}, {info.threads} threads, "
            f"{info.device.decode()}"
        )

    def cache(self, num_blocks, block_size, num_kv_heads, head_size, dtype):
        """Reserves a pool of blocks."""
        options = _CacheOptions(
            ctypes.sizeof(_CacheOptions), num_blocks, block_size, num_kv_heads, head_size, DTYPE_CODES[dtype]
        )
        return self._create("cache", self._engine, ctypes.byref(options))

    def write_blocks(self, cache, blocks, keys, values):
        """Writes contiguous arrays [len(blocks), block_size, num_kv_heads, head_size] to blocks."""
        stride = self._library.bh_cache_block_bytes(cache)
        key, value = keys.ctypes.data, values.ctypes.data
        for i, block in enumerate(blocks):
            self._call(
                "bh_cache_write_block",
                cache,
                ctypes.c_int64(int(block)),
                ctypes.c_void_p(key + i * stride),
                ctypes.c_void_p(value + i * stride),
            )

    def layer(self, num_heads, num_kv_heads, head_size, dtype, cache):
        """A decoder layer over `cache` with scale head_size ** -0.5 and nothing else."""
        options = _LayerOptions(
            struct_size=ctypes.sizeof(_LayerOptions),
            name=b"bench",
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            dtype=DTYPE_CODES[dtype],
            scale=head_size**-0.5,
            k_scale=1,
            v_scale=1,
        )
        return self._create("layer", self._engine, ctypes.byref(options), cache)

    def binding(self, layer, batch):
        """Checks the schema of `batch` (a pyarrow.RecordBatch) against the layer."""
        array, schema = _export(batch)
        _release(array)
        return self._create("binding", layer, ctypes.byref(schema))

    def lend(self, batch):
        """Exports `batch` once, for any number of steps, until the library is closed."""
        array, schema = _export(batch)
        self._made.callback(_release, schema)
        self._made.callback(_release, array)
        return _Loan(array, self._borrowed_release)

    def step(self, binding, batch, result):
        """One step; both are what `lend` answered, and stay usable."""
        self._call("bh_step", binding, batch.fresh(), result.fresh(), None)

    def probe_read(self, cache, blocks):
        """Seconds that reading `blocks` (int32) takes at best."""
        self._call(
            "bh_probe_read",
            self._engine,
            cache,
            ctypes.c_void_p(blocks.ctypes.data),
            ctypes.c_int64(len(blocks)),
            ctypes.byref(self._nanoseconds),
        )
        return self._nanoseconds.value * 1e-9

    def probe_compute(self, flops):
        """Seconds that so many float32 operations take at best."""
        nanoseconds = ctypes.byref(self._nanoseconds)
        self._call("bh_probe_compute", self._engine, ctypes.c_int64(int(flops)), nanoseconds)
        return self._nanoseconds.value * 1e-9
