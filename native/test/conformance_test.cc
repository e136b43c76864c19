// SPDX-License-Identifier: Apache-2.0
// What every backend must compute, compared with the float64 reference: one line a case, each on
// every target and for every combination of the axes that it lists.
#include <gtest/gtest.h>

#include "cases.h"

namespace broadhead::test {
namespace {

/// Sequences with decode, chunked prefill and prefill side by side.
const std::vector<Sequence> kMixed = {{1, 50}, {9, 33}, {40, 77}, {5, 5}, {1, 1}};

const std::vector<Heads> kGroups = {{1, 1},  {2, 1},  {3, 1},  {4, 1},  {5, 1},  {6, 1},
                                    {7, 1},  {8, 1},  {9, 1},  {10, 1}, {11, 1}, {12, 1},
                                    {13, 1}, {14, 1}, {15, 1}, {16, 1}, {15, 3}, {32, 2}};

const std::vector<Slopes> kSlopes = {Slopes::kPositive, Slopes::kNegative, Slopes::kMixed};
const std::vector<Sinks> kSinks = {Sinks::kRandom, Sinks::kOff};
const std::vector<Sinks> kWithAndWithoutSinks = {Sinks::kNone, Sinks::kRandom, Sinks::kOff};

const std::vector<Rotary> kRotary = {{kWholeHead, true}, {kWholeHead, false}, {32, true},
                                     {32, false},        {30, true},          {2, false}};

// clang-format off
const std::vector<Case>& cases() {
  static const std::vector<Case> kCases = {
    {.feature = "decode", .name = "matrix", .rows = {{1, 1}, {1, 2}, {1, 5}, {1, 15}, {1, 16}, {1, 17}, {1, 20}}, .heads = {{40, 40}, {64, 8}}, .head_sizes = {32, 80, 128, 256}, .block_sizes = {16, 32}, .alibi = {Slopes::kNone, Slopes::kMixed}, .caches = kAutoAndFp8},
    {.feature = "decode", .name = "long", .rows = {{1, 113}, {1, 1}, {1, 312}, {1, 7}}, .heads = {{4, 4}, {8, 2}, {9, 3}}, .head_sizes = {96, 128}, .block_sizes = {48, 96, 128}, .windows = {0, 256}},
    {.feature = "decode", .name = "unified", .rows = {{1, 523}, {1, 37}, {1, 2011}}, .heads = {{8, 2}, {5, 1}}, .head_sizes = {128}, .caches = kAutoAndFp8},
    {.feature = "decode", .name = "small", .rows = {{1, 32}, {1, 40}}, .caches = kAutoAndFp8},
    {.feature = "decode", .name = "medium", .rows = {{1, 128}, {1, 255}, {1, 256}, {1, 257}, {1, 511}, {1, 512}, {1, 513}, {1, 700}}, .caches = kAutoAndFp8},
    {.feature = "decode", .name = "large", .rows = {{1, 256}, {1, 256}, {1, 256}, {1, 256}, {1, 256}, {1, 256}, {1, 256}, {1, 256}, {1, 256}, {1, 256}, {1, 256}, {1, 256}}},
    {.feature = "decode", .name = "single", .rows = {{1, 1024}}, .caches = kEveryCache},

    {.feature = "prefill", .name = "matrix", .rows = {{16, 32}, {40, 56}, {17, 60}, {33, 33}, {1, 77}, {5, 5}, {1, 16}, {3, 16}}, .heads = {{4, 4}, {8, 1}}, .head_sizes = {32, 128}, .block_sizes = {32, 544}, .windows = {0, 16, 48}, .caches = kAutoAndFp8},
    {.feature = "prefill", .name = "group64", .rows = {{16, 40}, {3, 16}, {1, 30}}, .heads = {{64, 1}}, .head_sizes = {32, 128}, .block_sizes = {32}, .windows = {0, 16}, .caches = kAutoAndFp8},
    {.feature = "prefill", .name = "cpu_lengths", .rows = {{193, 193}, {5, 5}, {3, 16}, {17, 341}}, .heads = {{4, 4}, {9, 3}}, .head_sizes = {96}, .block_sizes = {48}, .windows = {0, 64}},
    {.feature = "prefill", .name = "small", .rows = {{8, 32}, {8, 40}}, .caches = kAutoAndFp8},
    {.feature = "prefill", .name = "medium", .rows = {{16, 256}, {16, 400}}, .caches = kAutoAndFp8},
    {.feature = "prefill", .name = "large", .rows = {{32, 700}, {32, 701}}},
    {.feature = "prefill", .name = "single", .rows = {{64, 512}}, .caches = kEveryCache},
    {.feature = "prefill", .name = "whole_prompt", .rows = {{200, 200}}, .heads = {{3, 1}}, .head_sizes = {64, 256}, .caches = kAutoAndFp8},

    {.feature = "mixed", .name = "unified", .rows = {{1, 228}, {5, 18}, {33, 113}}, .heads = {{4, 4}, {8, 2}, {5, 1}}, .head_sizes = {128, 256}, .windows = {0, 64, 128, 256}, .soft_caps = {0, 50}},
    {.feature = "mixed", .name = "unified_full", .rows = {{1, 1328}, {5, 18}, {129, 463}}, .head_sizes = {128}, .dtypes = {BH_BFLOAT16}},
    {.feature = "mixed", .name = "cpu_lengths", .rows = {{99, 245}, {1, 123}, {98, 114}, {1, 416}, {60, 60}}, .heads = {{4, 4}, {9, 3}}, .head_sizes = {96}, .block_sizes = {48, 128}, .windows = {0, 64}},
    {.feature = "mixed", .name = "small", .rows = {{1, 32}, {1, 40}, {5, 48}, {5, 56}}, .block_sizes = {16, 32, 544}, .caches = kEveryCache},
    {.feature = "mixed", .name = "speculative", .rows = {{1, 512}, {1, 300}, {7, 512}, {7, 260}, {4, 100}, {2, 2}}, .heads = {{8, 8}, {8, 2}, {8, 1}}, .caches = kAutoAndFp8},

    {.feature = "gqa", .name = "decode", .rows = {{1, 100}, {1, 37}, {3, 50}}, .heads = kGroups, .caches = kAutoAndFp8},
    {.feature = "gqa", .name = "prefill", .rows = {{23, 40}, {50, 60}}, .heads = kGroups, .head_sizes = {32}, .caches = kAutoAndFp8},
    {.feature = "wide_heads", .name = "decode", .rows = {{1, 20}, {3, 17}}, .heads = {{40, 40}, {64, 64}}, .head_sizes = {128, 256}, .caches = kAutoAndFp8},

    {.feature = "head_size", .name = "all", .rows = {{1, 50}, {9, 33}, {30, 47}}, .heads = {{6, 2}}, .head_sizes = {32, 64, 80, 96, 128, 160, 192, 224, 256}, .block_sizes = {16, 32}, .caches = kEveryCache},
    {.feature = "head_size", .name = "all_features", .rows = {{1, 90}, {9, 33}, {70, 130}}, .heads = {{6, 2}}, .head_sizes = {32, 64, 80, 96, 128, 160, 192, 224, 256}, .windows = {30}, .soft_caps = {20}, .alibi = {Slopes::kMixed}, .sinks = {Sinks::kRandom}, .rope = {{32, true}}, .caches = kAutoAndFp8},
    {.feature = "block_size", .name = "all", .rows = {{1, 1}, {1, 16}, {1, 600}, {5, 545}, {33, 33}}, .heads = {{2, 1}}, .block_sizes = {16, 32, 48, 64, 96, 128, 528, 544, 784, 1056}, .caches = kAutoAndFp8},
    {.feature = "block_size", .name = "boundaries", .rows = {{1, 543}, {1, 544}, {1, 545}, {3, 528}, {2, 1088}, {20, 784}}, .heads = {{2, 1}}, .head_sizes = {32}, .block_sizes = {48, 528, 544, 784}, .windows = {0, 17}, .caches = kAutoAndFp8},
    {.feature = "cache_dtype", .name = "mixed", .rows = kMixed, .heads = {{8, 8}, {8, 2}}, .head_sizes = {64, 80}, .caches = kEveryCache},
    {.feature = "cache_dtype", .name = "long", .rows = {{1, 700}, {20, 300}}, .caches = kEveryCache},

    {.feature = "window", .name = "boundaries", .rows = {{1, 1}, {1, 15}, {1, 16}, {1, 17}, {1, 31}, {1, 32}, {1, 33}, {20, 40}, {3, 3}}, .block_sizes = {16, 48}, .windows = {1, 2, 15, 16, 17, 31, 32, 33, 1000}, .caches = kAutoAndFp8},
    {.feature = "window", .name = "long", .rows = {{1, 500}, {1, 64}, {1, 65}, {20, 330}}, .heads = {{4, 4}, {8, 1}}, .windows = {1, 64, 300}, .caches = kAutoAndFp8},
    {.feature = "window", .name = "blocks_freed", .rows = {{1, 200}, {9, 150}, {40, 160}, {1, 97}}, .block_sizes = {16, 48}, .windows = {1, 16, 40}, .caches = kAutoAndFp8},
    {.feature = "window", .name = "gemma2", .rows = kMixed, .heads = {{8, 4}}, .head_sizes = {256}, .windows = {24}, .soft_caps = {50}, .caches = kAutoAndFp8, .scale = 0.0625f},
    {.feature = "window", .name = "gpt_oss", .rows = kMixed, .heads = {{16, 2}}, .windows = {0, 24}, .sinks = {Sinks::kRandom}, .rope = {{kWholeHead, true}}, .caches = kAutoAndFp8},

    {.feature = "soft_cap", .name = "values", .rows = kMixed, .soft_caps = {1, 30, 50}, .caches = kAutoAndFp8, .scale = 0.5f},
    {.feature = "soft_cap", .name = "small_scores", .rows = kMixed, .soft_caps = {1, 50}, .scale = 0.001f},
    {.feature = "soft_cap", .name = "with_alibi_and_sinks", .rows = kMixed, .windows = {0, 20}, .soft_caps = {5}, .alibi = kSlopes, .sinks = {Sinks::kRandom}, .caches = kAutoAndFp8},

    {.feature = "alibi", .name = "slopes", .rows = kMixed, .heads = {{8, 8}, {12, 3}}, .alibi = kSlopes, .caches = kAutoAndFp8},
    {.feature = "alibi", .name = "window", .rows = kMixed, .block_sizes = {16, 544}, .windows = {1, 16, 20}, .alibi = kSlopes},
    {.feature = "alibi", .name = "sinks", .rows = kMixed, .windows = {0, 20}, .alibi = kSlopes, .sinks = kSinks},
    {.feature = "alibi", .name = "long", .rows = {{1, 900}, {10, 600}}, .heads = {{8, 8}}, .head_sizes = {32}, .alibi = {Slopes::kPositive}},

    {.feature = "sinks", .name = "values", .rows = kMixed, .heads = {{8, 8}, {8, 2}, {16, 1}}, .sinks = kSinks, .caches = kAutoAndFp8},
    {.feature = "sinks", .name = "window", .rows = kMixed, .windows = {1, 16, 20}, .sinks = kSinks, .caches = kAutoAndFp8},
    {.feature = "sinks", .name = "long", .rows = {{1, 1500}, {20, 600}}, .sinks = kSinks},
    {.feature = "sinks", .name = "threads", .rows = {{1, 1500}, {20, 600}}, .sinks = kSinks, .threads = 3},

    {.feature = "scale", .name = "one", .rows = kMixed, .caches = kAutoAndFp8, .scale = 1.0f},
    {.feature = "scale", .name = "odd", .rows = kMixed, .caches = kAutoAndFp8, .scale = 0.0712f},
    {.feature = "scale", .name = "negative", .rows = kMixed, .scale = -0.1f},
    {.feature = "scale", .name = "tiny", .rows = kMixed, .scale = 1e-6f},

    {.feature = "fp8", .name = "odd_scales", .rows = kMixed, .head_sizes = {32, 80, 128}, .block_sizes = {16, 544}, .caches = kFp8, .k_scale = 0.08965013f, .v_scale = 0.3721f},
    {.feature = "fp8", .name = "saturating", .rows = kMixed, .caches = kFp8, .k_scale = 0.0011f, .v_scale = 0.0023f},
    {.feature = "fp8", .name = "small_codes", .rows = kMixed, .caches = kFp8, .k_scale = 300.1f, .v_scale = 77.7f},
    {.feature = "fp8", .name = "subnormal_codes", .rows = kMixed, .caches = kFp8, .k_scale = 9000.1f, .v_scale = 70000.3f},
    {.feature = "fp8", .name = "several_tokens", .rows = {{8, 40}, {5, 33}, {6, 100}, {8, 8}, {1, 70}, {7, 300}}, .heads = {{32, 8}, {48, 16}}, .windows = {0, 20}, .caches = kFp8},
    {.feature = "fp8", .name = "rest_of_prompt", .rows = {{20, 330}, {4, 90}, {1, 64}, {19, 40}, {36, 36}}, .heads = {{64, 8}}, .head_sizes = {64, 256}, .caches = kFp8},
    {.feature = "fp8", .name = "all_features", .rows = kMixed, .windows = {30}, .soft_caps = {20}, .alibi = {Slopes::kMixed}, .sinks = {Sinks::kRandom}, .rope = {{32, true}, {32, false}}, .caches = kFp8},

    {.feature = "rope", .name = "pairings", .rows = {{1, 40}, {5, 5}, {9, 30}}, .head_sizes = {64, 80, 256}, .rope = kRotary, .caches = kAutoAndFp8},
    {.feature = "rope", .name = "caches", .rows = {{1, 40}, {5, 5}, {9, 30}}, .block_sizes = {32, 544}, .rope = {{kWholeHead, true}, {kWholeHead, false}}, .caches = kEveryCache},
    {.feature = "rope", .name = "fusion", .rows = {{1, 1}, {1, 9}, {1, 17}, {1, 33}, {1, 16}}, .heads = {{64, 8}}, .rope = {{kWholeHead, true}, {kWholeHead, false}}, .caches = kAutoAndFp8},
    {.feature = "rope", .name = "wide_tokens", .rows = {{1, 20}, {3, 3}}, .heads = {{264, 8}}, .rope = kRotary},
    {.feature = "rope", .name = "int64_positions", .rows = {{1, 40}, {9, 30}}, .rope = kRotary, .int64_positions = true},
    {.feature = "rope", .name = "attend_only", .rows = {{1, 40}, {9, 30}}, .rope = kRotary, .flow = Flow::kAttendOnly},
    {.feature = "rope", .name = "encoder", .rows = {{20, 20}, {33, 33}}, .windows = {0, 16}, .rope = kRotary, .attn_type = BH_ENCODER_ONLY},
    {.feature = "rope", .name = "shared", .rows = {{1, 40}, {9, 30}}, .rope = kRotary, .flow = Flow::kShared},

    {.feature = "encoder", .name = "matrix", .rows = {{33, 33}, {64, 64}, {1, 1}, {96, 96}, {17, 17}}, .heads = {{8, 8}, {8, 2}}, .head_sizes = {64, 128}, .windows = {0, 1, 16, 32}, .attn_type = BH_ENCODER},
    {.feature = "encoder", .name = "only", .rows = {{33, 33}, {64, 64}, {1, 1}, {50, 50}}, .heads = {{8, 8}, {12, 4}}, .head_sizes = {32, 80}, .windows = {0, 1, 2, 15, 33, 1000}, .attn_type = BH_ENCODER_ONLY},
    {.feature = "encoder", .name = "head_sizes", .rows = {{33, 33}, {16, 16}}, .heads = {{4, 2}}, .head_sizes = {32, 64, 80, 96, 128, 160, 192, 224, 256}, .attn_type = BH_ENCODER_ONLY},
    {.feature = "encoder", .name = "other_lengths", .rows = {{5, 33}, {40, 16}, {1, 100}, {3, 0}, {0, 9}, {0, 0}}, .windows = {0, 1, 8}, .sinks = kWithAndWithoutSinks, .attn_type = BH_ENCODER},
    {.feature = "encoder", .name = "soft_cap", .rows = {{33, 33}, {17, 17}}, .windows = {0, 8}, .soft_caps = {1, 30}, .attn_type = BH_ENCODER},
    {.feature = "encoder", .name = "alibi", .rows = {{33, 33}, {17, 17}}, .windows = {0, 8}, .alibi = kSlopes, .attn_type = BH_ENCODER_ONLY},
    {.feature = "encoder", .name = "sinks", .rows = {{33, 33}, {17, 17}}, .windows = {0, 8}, .sinks = kSinks, .attn_type = BH_ENCODER_ONLY},
    {.feature = "encoder", .name = "features", .rows = {{33, 33}, {70, 70}, {1, 1}}, .head_sizes = {64, 128}, .windows = {16}, .soft_caps = {20}, .alibi = {Slopes::kMixed}, .sinks = {Sinks::kRandom}, .rope = {{kWholeHead, true}, {30, false}}, .attn_type = BH_ENCODER},
    {.feature = "encoder", .name = "long", .rows = {{300, 300}, {129, 129}}, .heads = {{4, 4}}, .head_sizes = {32}, .windows = {0, 64}, .attn_type = BH_ENCODER_ONLY},

    {.feature = "cross", .name = "matrix", .rows = {{1, 60}, {5, 33}, {20, 70}, {3, 3}}, .heads = {{8, 8}, {8, 2}}, .head_sizes = {64, 128}, .block_sizes = {16, 48}, .caches = kAutoAndFp8, .attn_type = BH_ENCODER_DECODER},
    {.feature = "cross", .name = "caches", .rows = {{1, 60}, {5, 33}, {3, 3}}, .heads = {{4, 2}}, .block_sizes = {16, 544}, .caches = kEveryCache, .attn_type = BH_ENCODER_DECODER},
    {.feature = "cross", .name = "empty", .rows = {{1, 0}, {5, 0}, {0, 20}, {0, 0}, {2, 7}}, .sinks = kWithAndWithoutSinks, .caches = kAutoAndFp8, .attn_type = BH_ENCODER_DECODER},
    {.feature = "cross", .name = "whisper", .rows = {{1, 750}, {4, 751}}, .heads = {{6, 6}}, .caches = kAutoAndFp8, .attn_type = BH_ENCODER_DECODER},
    {.feature = "cross", .name = "features", .rows = {{1, 60}, {20, 100}}, .windows = {0, 16}, .soft_caps = {0, 20}, .alibi = {Slopes::kNone, Slopes::kMixed}, .sinks = {Sinks::kNone, Sinks::kRandom}, .attn_type = BH_ENCODER_DECODER},
    {.feature = "cross", .name = "rope", .rows = {{1, 1}, {33, 33}, {70, 70}}, .block_sizes = {16, 544}, .rope = kRotary, .caches = kAutoAndFp8, .attn_type = BH_ENCODER_DECODER},

    {.feature = "lse", .name = "left_out", .rows = kMixed, .sinks = kWithAndWithoutSinks, .caches = kAutoAndFp8, .lse = false},
    {.feature = "lse", .name = "left_out_encoder", .rows = {{33, 33}, {0, 4}, {17, 17}}, .attn_type = BH_ENCODER, .lse = false},

    {.feature = "output_scale", .name = "fusion", .rows = {{1, 33}, {1, 17}, {5, 9}}, .heads = {{32, 8}, {40, 8}}, .head_sizes = {128}, .caches = kAutoAndFp8, .output_scale = 0.0213f},
    {.feature = "output_scale", .name = "saturating", .rows = kMixed, .caches = kAutoAndFp8, .output_scale = 0.0011f},
    {.feature = "output_scale", .name = "coarse", .rows = kMixed, .caches = kAutoAndFp8, .output_scale = 3.3f},
    {.feature = "output_scale", .name = "alibi_prefill", .rows = kMixed, .windows = {0, 20}, .alibi = kSlopes, .sinks = kWithAndWithoutSinks, .output_scale = 0.02f},
    {.feature = "output_scale", .name = "encoder", .rows = {{33, 33}, {17, 17}}, .windows = {0, 8}, .attn_type = BH_ENCODER, .output_scale = 0.02f},
    {.feature = "output_scale", .name = "encoder_only", .rows = {{33, 33}, {17, 17}}, .sinks = kWithAndWithoutSinks, .attn_type = BH_ENCODER_ONLY, .output_scale = 0.02f},
    {.feature = "output_scale", .name = "cross", .rows = {{1, 60}, {5, 33}, {2, 0}}, .caches = kAutoAndFp8, .attn_type = BH_ENCODER_DECODER, .output_scale = 0.02f},

    {.feature = "empty", .name = "no_queries", .rows = {{0, 35}, {1, 20}, {0, 1}, {0, 16}}, .block_sizes = {16, 544}, .caches = kAutoAndFp8},
    {.feature = "empty", .name = "padding_rows", .rows = {{1, 0}, {0, 0}, {1, 20}, {3, 0}, {0, 35}}, .windows = {0, 1, 16}, .sinks = kWithAndWithoutSinks, .caches = kAutoAndFp8},
    {.feature = "empty", .name = "only_padding_rows", .rows = {{1, 0}, {0, 0}}, .sinks = kWithAndWithoutSinks, .caches = kAutoAndFp8},
    {.feature = "empty", .name = "no_rows", .rows = {}, .caches = kAutoAndFp8},

    {.feature = "slots", .name = "negative", .rows = kMixed, .block_sizes = {16, 48}, .caches = kEveryCache, .flow = Flow::kPadding},
    {.feature = "slots", .name = "duplicate", .rows = kMixed, .block_sizes = {16, 48}, .caches = kEveryCache, .flow = Flow::kDuplicates},
    {.feature = "slots", .name = "duplicate_threads", .rows = {{40, 80}, {33, 33}, {1, 5}}, .caches = kAutoAndFp8, .flow = Flow::kDuplicates, .threads = 3},
    {.feature = "slots", .name = "negative_padding_rows", .rows = {{1, 0}, {1, 20}, {0, 0}}, .caches = kAutoAndFp8, .flow = Flow::kPadding},

    {.feature = "attend_only", .name = "all", .rows = kMixed, .block_sizes = {16, 32, 544}, .caches = kEveryCache, .flow = Flow::kAttendOnly},
    {.feature = "sharing", .name = "all", .rows = kMixed, .block_sizes = {16, 544}, .windows = {0, 20}, .caches = kEveryCache, .flow = Flow::kShared},
    {.feature = "sharing", .name = "cross", .rows = {{1, 60}, {5, 33}, {20, 70}}, .windows = {0, 16}, .caches = kAutoAndFp8, .attn_type = BH_ENCODER_DECODER, .flow = Flow::kShared},

    {.feature = "shared_prefix", .name = "decode", .rows = {{1, 200}, {1, 161}, {1, 300}, {1, 177}, {1, 400}}, .heads = {{8, 8}, {8, 2}, {16, 1}}, .caches = kAutoAndFp8, .shared_prefix = 160},
    {.feature = "shared_prefix", .name = "whole_rows", .rows = {{1, 160}, {1, 160}, {2, 163}, {4, 170}, {1, 161}}, .caches = kAutoAndFp8, .shared_prefix = 160},
    {.feature = "shared_prefix", .name = "with_prefill", .rows = {{1, 320}, {30, 350}, {1, 337}, {3, 330}, {1, 340}}, .block_sizes = {16, 32, 64}, .caches = kAutoAndFp8, .shared_prefix = 320},
    {.feature = "shared_prefix", .name = "features", .rows = {{1, 300}, {1, 161}, {3, 300}, {1, 290}}, .windows = {0, 60, 250}, .soft_caps = {0, 20}, .alibi = {Slopes::kNone, Slopes::kMixed}, .sinks = {Sinks::kNone, Sinks::kRandom}, .shared_prefix = 144},
    {.feature = "shared_prefix", .name = "rope", .rows = {{1, 300}, {1, 161}, {3, 300}, {1, 290}}, .rope = {{kWholeHead, true}}, .caches = kAutoAndFp8, .shared_prefix = 144},
    {.feature = "shared_prefix", .name = "fp8_output", .rows = {{1, 300}, {1, 161}, {3, 300}, {1, 290}}, .caches = kAutoAndFp8, .output_scale = 0.02f, .shared_prefix = 144},
    {.feature = "shared_prefix", .name = "long", .rows = {{1, 3000}, {1, 3100}, {1, 2999}}, .heads = {{4, 1}}, .head_sizes = {32}, .caches = kAutoAndFp8, .threads = 5, .shared_prefix = 2976},
    {.feature = "shared_prefix", .name = "cross", .rows = {{1, 300}, {1, 161}, {3, 300}, {1, 290}}, .caches = kAutoAndFp8, .attn_type = BH_ENCODER_DECODER, .shared_prefix = 144},
    {.feature = "shared_prefix", .name = "large_blocks", .rows = {{1, 600}, {1, 1100}, {1, 900}}, .heads = {{4, 2}}, .head_sizes = {32}, .block_sizes = {528, 544}, .caches = kAutoAndFp8, .shared_prefix = 544},

    {.feature = "threads", .name = "one", .rows = {{1, 900}, {20, 300}, {1, 1}}, .caches = kAutoAndFp8, .threads = 1},
    {.feature = "threads", .name = "three", .rows = {{1, 900}, {20, 300}, {1, 1}}, .caches = kAutoAndFp8, .threads = 3},
    {.feature = "threads", .name = "eight", .rows = {{1, 900}, {20, 300}, {1, 1}}, .caches = kAutoAndFp8, .threads = 8},
    {.feature = "threads", .name = "piece_boundaries", .rows = {{1, 10241}}, .heads = {{1, 1}}, .head_sizes = {32}, .threads = 16},
    {.feature = "threads", .name = "pieces", .rows = {{1, 5000}, {1, 600}}, .heads = {{4, 2}}, .head_sizes = {32}, .windows = {0, 2000}, .threads = 4},

    {.feature = "long_context", .name = "decode", .rows = {{1, 131149}}, .heads = {{1, 1}}, .head_sizes = {32}, .block_sizes = {544}, .dtypes = {BH_FLOAT16}, .caches = kAutoAndFp8},
    {.feature = "long_context", .name = "window", .rows = {{3, 140000}}, .heads = {{1, 1}}, .head_sizes = {32}, .windows = {4096}, .dtypes = {BH_BFLOAT16}},
  };
  return kCases;
}
// clang-format on

class Conformance : public testing::TestWithParam<Instance> {};

TEST_P(Conformance, MatchesReference) { run(GetParam()); }

INSTANTIATE_TEST_SUITE_P(, Conformance, testing::ValuesIn(expand(cases())),
                         [](const auto& info) { return info.param.label(); });

}  // namespace
}  // namespace broadhead::test
