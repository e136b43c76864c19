# SPDX-License-Identifier: Apache-2.0
"""The element types of the step format in plain NumPy: bfloat16 as uint16 bits, float8 as uint8 bits."""

import numpy as np

#: dtype label -> (NumPy type of the stored elements, value of the column's `dtype` metadata or None)
STORAGE = {
    "float32": (np.float32, None),
    "float16": (np.float16, None),
    "bfloat16": (np.uint16, "bfloat16"),
    "float8_e4m3fn": (np.uint8, "float8_e4m3fn"),
    "float8_e5m2": (np.uint8, "float8_e5m2"),
}

_EXPONENT_BITS = {"float8_e4m3fn": 4, "float8_e5m2": 5}


def bfloat16_to_float32(bits):
    """Widens bfloat16 bits (uint16, any shape) to float32 of the same shape; exact."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values):
    """Rounds float32 (any shape) to bfloat16 bits (uint16): nearest, ties to even, NaN stays NaN."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _float8_table(dtype):
    """All 256 codes of a float8 type as float64 [256]."""
    exponent_bits = _EXPONENT_BITS[dtype]
    mantissa_bits = 7 - exponent_bits
    bias = 2 ** (exponent_bits - 1) - 1
    code = np.arange(128)
    exponent, mantissa = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
    fraction = mantissa / 2.0**mantissa_bits
    value = np.where(
        exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - float(bias))
    )
    if dtype == "float8_e4m3fn":
        value[127] = np.nan
    else:
        value[124:] = np.nan
        value[124] = np.inf
    return np.concatenate([value, -value])


_FLOAT8 = {dtype: _float8_table(dtype) for dtype in _EXPONENT_BITS}


def float8_to_float32(bits, dtype):
    """Decodes float8 bits (uint8, any shape); `dtype` is float8_e4m3fn or float8_e5m2."""
    return _FLOAT8[dtype].astype(np.float32)[np.asarray(bits, np.uint8)]


def to_float8(values, dtype):
    """Rounds values (any shape) to float8 bits: nearest, ties to even, saturating, NaN stays NaN."""
    values = np.asarray(values, np.float64)
    table = _FLOAT8[dtype][:128]
    finite = table[np.isfinite(table)]
    magnitude = np.minimum(np.nan_to_num(np.abs(values), nan=0.0, posinf=finite[-1]), finite[-1])
    above = np.clip(np.searchsorted(finite, magnitude), 1, len(finite) - 1)
    below = above - 1
    to_above, to_below = finite[above] - magnitude, magnitude - finite[below]
    code = np.where((to_above < to_below) | ((to_above == to_below) & (above % 2 == 0)), above, below)
    code = np.where(np.isnan(values), 127, code)
    return (code | (np.signbit(values).astype(np.int64) << 7)).astype(np.uint8)


def encode(values, dtype):
    """Converts float values of any shape to the stored elements of `dtype`; stored bits pass as they are."""
    storage, logical = STORAGE[dtype]
    values = np.asarray(values)
    if values.dtype == storage:
        return values
    if logical is None:
        return values.astype(storage)
    if dtype == "bfloat16":
        return float32_to_bfloat16(values)
    return to_float8(values, dtype)


def decode(stored, dtype):
    """Converts stored elements of `dtype` (any shape) to float32 of the same shape; exact."""
    if dtype == "bfloat16":
        return bfloat16_to_float32(stored)
    if dtype in _FLOAT8:
        return float8_to_float32(stored, dtype)
    return np.asarray(stored, np.float32)
