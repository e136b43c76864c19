// SPDX-License-Identifier: Apache-2.0
#include "core/layer_spec.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "core/dtype.h"
#include "core/failure.h"

namespace broadhead {
namespace {

void require(bool holds, const char* message) {
  if (!holds) throw Failure(BH_INVALID_ARGUMENT, kNoRow, "%s", message);
}

template <class... Args>
void require(bool holds, const char* format, Args... args) {
  if (!holds) throw Failure(BH_INVALID_ARGUMENT, kNoRow, format, args...);
}

}  // namespace

void check_heads(const char* what, const char* option, int heads, int head_size) {
  require(heads >= 1, "%s: %s must be at least 1, got %d", what, option, heads);
  require(std::count(std::begin(kHeadSizes), std::end(kHeadSizes), head_size) == 1,
          "%s: head_size must be one of 32 64 80 96 128 160 192 224 256, got %d", what, head_size);
}

LayerSpec check_layer(const bh_layer_options& o) {
  require(o.struct_size == sizeof o, "bh_layer_options.struct_size must be %zu, got %u", sizeof o,
          o.struct_size);
  require(o.name != nullptr, "bh_layer_options.name must not be NULL");
  const char* name = o.name;
  check_heads(name, "num_kv_heads", o.num_kv_heads, o.head_size);
  require(o.num_heads >= 1 && o.num_heads % o.num_kv_heads == 0,
          "%s: num_heads must be a multiple of num_kv_heads %d, got %d", name, o.num_kv_heads,
          o.num_heads);
  require(o.num_heads <= INT32_MAX / o.head_size,
          "%s: num_heads must be at most %d, with which a tensor has 2^31 elements, got %d", name,
          INT32_MAX / o.head_size, o.num_heads);
  require(o.attn_type >= BH_DECODER && o.attn_type <= BH_ENCODER_DECODER,
          "%s: attn_type must be 0 .. 3 (bh_attn_type), got %d", name, o.attn_type);
  require(o.dtype == BH_FLOAT32 || o.dtype == BH_FLOAT16 || o.dtype == BH_BFLOAT16,
          "%s: dtype must be float32, float16 or bfloat16, got %s", name, dtype_name(o.dtype));
  require(std::isfinite(o.scale), "%s: scale must be finite, got %g", name, double{o.scale});
  require(o.sliding_window >= 0, "%s: sliding_window must be at least 1 (0: none), got %lld", name,
          static_cast<long long>(o.sliding_window));
  require(std::isfinite(o.logits_soft_cap) && o.logits_soft_cap >= 0,
          "%s: logits_soft_cap must be positive (0: none), got %g", name,
          double{o.logits_soft_cap});
  require(std::isfinite(o.k_scale) && o.k_scale > 0, "%s: k_scale must be positive, got %g", name,
          double{o.k_scale});
  require(std::isfinite(o.v_scale) && o.v_scale > 0, "%s: v_scale must be positive, got %g", name,
          double{o.v_scale});
  require(std::isfinite(o.output_scale) && o.output_scale >= 0,
          "%s: output_scale must be positive (0: none), got %g", name, double{o.output_scale});

  LayerSpec spec{};
  spec.name = name;
  spec.num_heads = o.num_heads;
  spec.num_kv_heads = o.num_kv_heads;
  spec.head_size = o.head_size;
  spec.attn_type = o.attn_type;
  spec.dtype = o.dtype;
  spec.scale = o.scale;
  spec.sliding_window = o.sliding_window;
  spec.logits_soft_cap = o.logits_soft_cap;
  spec.k_scale = o.k_scale;
  spec.v_scale = o.v_scale;
  spec.output_scale = o.output_scale;
  spec.return_lse = o.return_lse != 0;
  spec.read_only_cache = o.read_only_cache != 0;
  if (o.alibi_slopes) spec.alibi_slopes.assign(o.alibi_slopes, o.alibi_slopes + o.num_heads);
  if (o.sinks) spec.sinks.assign(o.sinks, o.sinks + o.num_heads);
  for (float slope : spec.alibi_slopes) {
    require(std::isfinite(slope), "%s: alibi_slopes must be finite, got %g", name, double{slope});
  }
  for (float sink : spec.sinks) {
    require(!std::isnan(sink) && sink < INFINITY, "%s: sinks must be finite or -inf, got %g", name,
            double{sink});
  }
  if (o.rope) {
    const bh_rope& rope = *o.rope;
    require(rope.rotary_dim >= 2 && rope.rotary_dim <= o.head_size && rope.rotary_dim % 2 == 0,
            "%s: rotary_dim must be even and 2 .. head_size %d, got %d", name, o.head_size,
            rope.rotary_dim);
    const auto most = INT64_MAX / (rope.rotary_dim * int64_t{sizeof(float)});
    require(rope.max_position >= 1 && rope.max_position <= most,
            "%s: max_position must be 1 .. %lld, got %lld", name, static_cast<long long>(most),
            static_cast<long long>(rope.max_position));
    require(rope.cos_sin != nullptr, "%s: cos_sin must not be NULL", name);
    spec.rotary_dim = rope.rotary_dim;
    spec.max_position = rope.max_position;
    spec.is_neox = rope.is_neox != 0;
    spec.cos_sin.assign(rope.cos_sin, rope.cos_sin + rope.max_position * rope.rotary_dim);
  }
  return spec;
}

void check_layer_cache(const LayerSpec& spec, int cache_dtype, int block_size) {
  const char* name = spec.name.c_str();
  if (spec.uses_cache()) {
    require(cache_dtype != 0, "%s: the layer needs a KV cache, got none", name);
    require(byte_width(cache_dtype) > 0,
            "%s: the cache's dtype code must be 1 .. 5 (bh_dtype), got %d", name, cache_dtype);
    require(block_size >= kBlockSizeStep && block_size % kBlockSizeStep == 0,
            "%s: block_size must be a multiple of %d, got %d", name, kBlockSizeStep, block_size);
  } else {
    require(cache_dtype == 0, "%s: encoder layers have no KV cache, got one of %s", name,
            dtype_name(cache_dtype));
    require(!spec.read_only_cache, "%s: encoder layers have no KV cache, got read_only_cache",
            name);
  }
  const std::string cache =
      spec.uses_cache() ? std::string("a ") + dtype_name(cache_dtype) + " cache" : "no cache";
  require(is_fp8(cache_dtype) || (spec.k_scale == 1 && spec.v_scale == 1),
          "%s: k_scale and v_scale belong to fp8 caches, got %g and %g with %s", name,
          double{spec.k_scale}, double{spec.v_scale}, cache.c_str());
}

void check_cache(const bh_cache_options& o) {
  require(o.struct_size == sizeof o, "bh_cache_options.struct_size must be %zu, got %u", sizeof o,
          o.struct_size);
  check_heads("kv_cache", "num_kv_heads", o.num_kv_heads, o.head_size);
  require(o.num_blocks >= 1 && o.num_blocks <= INT32_MAX,
          "kv_cache: num_blocks must be 1 .. %d, got %lld", INT32_MAX,
          static_cast<long long>(o.num_blocks));
  require(o.block_size >= kBlockSizeStep && o.block_size % kBlockSizeStep == 0,
          "kv_cache: block_size must be a multiple of %d, got %d", kBlockSizeStep, o.block_size);
  require(byte_width(o.dtype) > 0, "kv_cache: dtype code must be 1 .. 5 (bh_dtype), got %d",
          o.dtype);
  const double bytes = 2.0 * double(o.num_blocks) * o.block_size * o.num_kv_heads * o.head_size *
                       byte_width(o.dtype);
  require(bytes < double(INT64_MAX),
          "kv_cache: %lld blocks of %d tokens with %d heads of %d take %g bytes",
          static_cast<long long>(o.num_blocks), o.block_size, o.num_kv_heads, o.head_size, bytes);
}

}  // namespace broadhead
