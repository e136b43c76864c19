# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding of the step format in float64, with the frequency scalings of the job file."""

import math

import numpy as np


def frequencies(rope):
    """Angle per position of each pair, [rotary_dim / 2], and the factor of cosines and sines."""
    dim, base = rope["rotary_dim"], rope.get("base", 10000.0)
    scaling = rope.get("rope_scaling") or {"rope_type": "default"}
    rule = scaling["rope_type"]
    stretch, trained = scaling.get("factor", 1.0), scaling.get("original_max_position_embeddings")
    pair = np.arange(dim // 2)
    if rule == "dynamic":
        length = max(rope["max_position"], trained)
        base = base * (stretch * length / trained - stretch + 1) ** (dim / (dim - 2))
    plain = base ** (-2.0 * pair / dim)
    if rule == "linear":
        return plain / stretch, 1.0
    if rule == "llama3":
        low, high = scaling.get("low_freq_factor", 1.0), scaling.get("high_freq_factor", 4.0)
        kept = np.clip((trained * plain / (2 * math.pi) - low) / (high - low), 0, 1)
        return plain * kept + plain / stretch * (1 - kept), 1.0
    if rule == "yarn":
        bounds = [
            dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))
            for turns in (scaling.get("beta_fast", 32.0), scaling.get("beta_slow", 1.0))
        ]
        if scaling.get("truncate", True):
            bounds = [math.floor(bounds[0]), math.ceil(bounds[1])]
        first, last = max(bounds[0], 0), min(bounds[1], dim - 1)
        slowed = np.clip((pair - first) / (last - first or 0.001), 0, 1)
        return plain * (1 - slowed) + plain / stretch * slowed, _yarn_factor(scaling, stretch)
    return plain, 1.0


def _yarn_factor(scaling, stretch):
    if scaling.get("attention_factor"):
        return scaling["attention_factor"]

    def temperature(weight):
        return 1.0 if stretch <= 1 else 0.1 * weight * math.log(stretch) + 1.0

    if scaling.get("mscale"):
        return temperature(scaling["mscale"]) / temperature(scaling["mscale_all_dim"])
    return temperature(1.0)


def rotate(x, position, rope):
    """Rotates x [n, heads, head_size] by position [n]; pairs (j, j + rotary_dim / 2) or (2j, 2j + 1)."""
    dim = rope["rotary_dim"]
    frequency, factor = frequencies(rope)
    angle = np.asarray(position)[: len(x), None, None] * frequency
    cos, sin = factor * np.cos(angle), factor * np.sin(angle)
    if rope.get("is_neox", True):
        first, second = slice(0, dim // 2), slice(dim // 2, dim)
    else:
        first, second = slice(0, dim, 2), slice(1, dim, 2)
    rotated = x.copy()
    a, b = x[..., first], x[..., second]
    rotated[..., first] = a * cos - b * sin
    rotated[..., second] = b * cos + a * sin
    return rotated
