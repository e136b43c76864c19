// SPDX-License-Identifier: Apache-2.0
/**
 * @file broadhead.h
 * Paged attention over Arrow record batches: the C ABI.
 *
 * Every function that can fail returns a `bh_status` and, where the caller passes one, fills a
 * `bh_error`. No exception crosses this boundary. Structures that may grow start with their own
 * size, set by the caller to `sizeof`. Handles are opaque and belong to whoever created them; a
 * handle must outlive the handles that were created from it, and `bh_*_destroy(NULL)` does nothing.
 *
 * Threads: different engines, caches and layers may be used from different threads at once. One
 * cache takes one step at a time: calls that begin steps on it, end them at once or touch its
 * blocks must not run concurrently. What bh_step_begin started may still be in flight then. One
 * layer without a cache, and one binding, bh_check_rows included, serve one thread at a time.
 */
#ifndef BROADHEAD_H
#define BROADHEAD_H

#include <stdint.h>

#include "broadhead/arrow_c_data.h"

#if defined(BH_BUILDING)
#define BH_API __attribute__((visibility("default")))
#else
#define BH_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** Raised whenever a declaration in this header changes its meaning or layout. */
#define BH_ABI_VERSION 3

/** The version that the loaded library was built with; compare with #BH_ABI_VERSION at load. */
BH_API int32_t bh_abi_version(void);

typedef enum bh_status {
  BH_OK = 0,
  BH_INVALID_ARGUMENT = 1, /**< an option or an argument of the call is wrong */
  BH_SCHEMA_MISMATCH = 2,  /**< a column is missing or has another type than the layer needs */
  BH_INVALID_ROW = 3,      /**< a value in one row is out of range; bh_error.row says which */
  BH_UNSUPPORTED = 4,      /**< right, but not something this backend can do */
  BH_OUT_OF_BLOCKS = 5,    /**< the block pool is exhausted */
  BH_OUT_OF_MEMORY = 6,
  BH_DEVICE_ERROR = 7, /**< the device refused the work; the task may be tried again */
  BH_DEVICE_LOST = 8,
  BH_ABI_MISMATCH = 9,
  BH_INTERNAL = 10,     /**< a defect of this library */
  BH_CANCELLED = 11,    /**< bh_engine_cancel was called */
  BH_SEQUENCE_LOST = 12 /**< of a caller that keeps block tables: the sequence is not cached */
} bh_status;

typedef struct bh_error {
  int32_t code;       /**< bh_status */
  int64_t row;        /**< row of the batch, or -1 where no row is to blame */
  char message[1000]; /**< column, expected and got, NUL-terminated UTF-8 */
} bh_error;

typedef enum bh_dtype {
  BH_FLOAT32 = 1,
  BH_FLOAT16 = 2,
  BH_BFLOAT16 = 3,
  BH_FLOAT8_E4M3FN = 4, /**< OCP e4m3: bias 7, largest 448, no infinity */
  BH_FLOAT8_E5M2 = 5    /**< OCP e5m2: bias 15, largest 57344 */
} bh_dtype;

typedef enum bh_attn_type {
  BH_DECODER = 0,
  BH_ENCODER = 1,
  BH_ENCODER_ONLY = 2,
  BH_ENCODER_DECODER = 3
} bh_attn_type;

/* ---- backends ------------------------------------------------------------------------------- */

typedef struct bh_backend_info {
  char name[16];    /**< what bh_engine_options.backend accepts */
  char device[128]; /**< processor or GPU name; empty where there is none */
  int32_t usable;   /**< 1 if an engine can be created on it here */
  char reason[256]; /**< why it is usable or not, and which tier was chosen */
} bh_backend_info;

/** Number of backends this library knows, usable here or not. */
BH_API int32_t bh_backend_count(void);

/** Describes backend `index`, 0 <= index < bh_backend_count(). */
BH_API int32_t bh_backend_describe(int32_t index, bh_backend_info* info);

/* ---- engine: an opened backend -------------------------------------------------------------- */

typedef struct bh_engine bh_engine;

typedef struct bh_engine_options {
  uint32_t struct_size;
  const char* backend; /**< "auto" (also NULL), or a name from bh_backend_describe */
  int32_t threads;     /**< CPU threads of one step, the calling one included, at most 32768; 0: one
                            per core */
  int32_t device;      /**< device index for GPU backends, -1: the one with the most free memory;
                            ignored by the CPU */
} bh_engine_options;

typedef struct bh_engine_info {
  char backend[16];
  char tier[16]; /**< instruction set tier of the CPU kernels, or the GPU architecture */
  char device[128];
  char reason[256]; /**< why this backend and tier */
  int32_t threads;
  int64_t free_memory; /**< bytes of a GPU that were free when it was opened; 0 for the CPU, whose
                            memory is the machine's */
  int32_t overlaps; /**< 1 if steps that were begun compute beside the caller; 0: a step is complete
                         when bh_step_begin returns */
} bh_engine_info;

BH_API int32_t bh_engine_create(const bh_engine_options* options, bh_engine** engine,
                                bh_error* error);
BH_API int32_t bh_engine_describe(const bh_engine* engine, bh_engine_info* info);

/**
 * Ends the steps of the engine that are running, and all later ones, with BH_CANCELLED as soon as
 * they notice, those in flight at their bh_step_end. From any thread, at any time before the engine
 * is destroyed. What such a step wrote is unspecified, so that the engine's caches are good for
 * nothing any more.
 */
BH_API void bh_engine_cancel(bh_engine* engine);

BH_API void bh_engine_destroy(bh_engine* engine);

/* ---- KV cache: a pool of blocks -------------------------------------------------------------- */

typedef struct bh_cache bh_cache;

typedef struct bh_cache_options {
  uint32_t struct_size;
  int64_t num_blocks;
  int32_t block_size; /**< tokens of a block, a multiple of 16 */
  int32_t num_kv_heads;
  int32_t head_size;
  int32_t dtype; /**< bh_dtype of the stored elements */
} bh_cache_options;

/** Reserves the pool. Every slot reads as zero until it is written. */
BH_API int32_t bh_cache_create(bh_engine* engine, const bh_cache_options* options, bh_cache** cache,
                               bh_error* error);

/** Bytes reserved for the pool. */
BH_API int64_t bh_cache_bytes(const bh_cache* cache);

/**
 * Bytes of one block's keys (its values take as many): block_size * num_kv_heads * head_size
 * elements of the cache's dtype.
 */
BH_API int64_t bh_cache_block_bytes(const bh_cache* cache);

/**
 * Reads block `block` in the logical order [block_size, num_kv_heads, head_size], whatever the
 * backend's own layout is. `key` and `value` each hold bh_cache_block_bytes(cache).
 */
BH_API int32_t bh_cache_read_block(const bh_cache* cache, int64_t block, void* key, void* value,
                                   bh_error* error);

/** Writes what bh_cache_read_block read. */
BH_API int32_t bh_cache_write_block(bh_cache* cache, int64_t block, const void* key,
                                    const void* value, bh_error* error);

/** Copies block source[i] to block target[i] for each i in order; no range is checked late: a bad
 * id is refused before anything is copied. */
BH_API int32_t bh_cache_copy_blocks(bh_cache* cache, const int64_t* source, const int64_t* target,
                                    int64_t count, bh_error* error);

BH_API void bh_cache_destroy(bh_cache* cache);

/* ---- layer: what one attention layer computes ------------------------------------------------ */

typedef struct bh_layer bh_layer;

/** Rotary embedding. `cos_sin` is [max_position, rotary_dim]: cosines in the first half of a row,
 * sines in the second; the layer copies it. */
typedef struct bh_rope {
  int32_t rotary_dim; /**< even, 2 .. head_size */
  int64_t max_position;
  int32_t is_neox; /**< 1: pairs (j, j + rotary_dim / 2); 0: pairs (2j, 2j + 1) */
  const float* cos_sin;
} bh_rope;

typedef struct bh_layer_options {
  uint32_t struct_size;
  const char* name; /**< used in messages; copied */
  int32_t num_heads;
  int32_t num_kv_heads; /**< divides num_heads */
  int32_t head_size;    /**< 32 64 80 96 128 160 192 224 256 */
  int32_t attn_type;    /**< bh_attn_type */
  int32_t dtype;        /**< bh_dtype of query, key, value: FLOAT32, FLOAT16 or BFLOAT16 */
  float scale;
  int64_t sliding_window;    /**< tokens a query sees, itself included; 0: all */
  float logits_soft_cap;     /**< 0: none */
  const float* alibi_slopes; /**< [num_heads] or NULL; copied */
  const float* sinks;        /**< [num_heads] or NULL; copied */
  float k_scale;             /**< fp8 caches: stored = key / k_scale; 1 otherwise */
  float v_scale;
  float output_scale; /**< > 0: the output is float8_e4m3fn of result / output_scale; 0: none */
  int32_t return_lse; /**< 1: the result carries `lse` */
  int32_t read_only_cache; /**< 1: key and value are not written (the layer shares a cache) */
  const bh_rope* rope;     /**< NULL: none */
} bh_layer_options;

/**
 * Answers whether `engine` can run the layer on a cache of `cache_dtype` (0 for the encoder types,
 * which have none) and `block_size`. BH_OK, or BH_UNSUPPORTED / BH_INVALID_ARGUMENT with the reason
 * in `error`.
 */
BH_API int32_t bh_layer_supported(const bh_engine* engine, const bh_layer_options* options,
                                  int32_t cache_dtype, int32_t block_size, bh_error* error);

/** `cache`, NULL for the encoder types, is one of `engine` and must outlive the layer. */
BH_API int32_t bh_layer_create(bh_engine* engine, const bh_layer_options* options, bh_cache* cache,
                               bh_layer** layer, bh_error* error);
BH_API void bh_layer_destroy(bh_layer* layer);

/* ---- binding: a layer and the schema of its batches ------------------------------------------ */

typedef struct bh_binding bh_binding;

/**
 * Checks a step batch schema against the layer, once per stream. Columns are found by name in any
 * order; columns that the step format does not name are ignored. `schema` is taken by move and
 * released on every path.
 */
BH_API int32_t bh_binding_create(bh_layer* layer, struct ArrowSchema* schema, bh_binding** binding,
                                 bh_error* error);
BH_API void bh_binding_destroy(bh_binding* binding);

/* ---- step ------------------------------------------------------------------------------------ */

/** What a step did. Addresses are those the kernels read and wrote: equal to the buffers of the
 * arrays that the caller passed unless bytes were staged or transferred. */
typedef struct bh_step_stats {
  int64_t query_tokens;
  int64_t written_tokens; /**< tokens whose key and value went to the cache */
  int64_t bytes_in_place; /**< tensor bytes used where the caller has them */
  int64_t bytes_staged;  /**< tensor bytes that were copied to be used: for a GPU, what lies neither
                              in its memory nor in that of bh_engine_alloc */
  int64_t query_address; /**< address of the first query element, 0 without queries */
  int64_t key_address;
  int64_t value_address;
  int64_t output_address;
  int64_t keys_seen; /**< keys that query tokens see, summed over the tokens */
  int64_t keys_read; /**< keys that were read from memory for them: fewer than keys_seen where
                          several tokens or rows share one read, and never outside a window but
                          for the rest of a tile of 16 */
  int64_t kernel_nanoseconds; /**< time in the kernels of update and attention: without import,
                                   checks and planning; 0 where a backend does not measure it */
  int64_t bytes_transferred;  /**< bytes of results that kernels wrote to memory of the device and
                                   that were transferred whole, asynchronously, staged ones too */
} bh_step_stats;

/**
 * One attention step: checks every row, then writes keys and values to the cache, then attends.
 *
 * `batch` is a struct array of the bound schema; it is taken by move and released on every path.
 * `result` is a struct array whose children are `output` (list of fixed-size tensors) and, for a
 * layer with return_lse, `lse`. The caller allocates its buffers, of batch->length rows and as many
 * tensors as `batch` has query tokens; the step fills offsets and values in place and leaves the
 * structure and its release to the caller. `stats` may be NULL.
 *
 * Data buffers lie at multiples of their elements' size; others are refused. How long buffers are,
 * C Data does not tell: that is trusted.
 *
 * On any error but BH_CANCELLED and those of a device that fails while it computes, nothing was
 * written to the cache or to `result`.
 */
BH_API int32_t bh_step(bh_binding* binding, struct ArrowArray* batch, struct ArrowArray* result,
                       bh_step_stats* stats, bh_error* error);

/** One batch of a step of several, and where its results go. */
typedef struct bh_step_part {
  struct ArrowArray* batch;
  struct ArrowArray* result;
} bh_step_part;

/**
 * As bh_step, for `count` batches of the bound schema in one step, each with a result of its own:
 * small batches share what a step costs and no tensor is gathered. All keys and values of all parts
 * are written before any row attends, and parts are in order where a slot is named twice. The row
 * of an error counts the rows of all parts. Without parts nothing happens.
 */
BH_API int32_t bh_step_parts(bh_binding* binding, const bh_step_part* parts, int64_t count,
                             bh_step_stats* stats, bh_error* error);

/** A step that was begun and has not ended: a handle, and counted as one. */
typedef struct bh_pending_step bh_pending_step;

/**
 * Begins a step: bh_step_parts up to the point where the device has all that it needs, so that what
 * is refused is refused here, and nothing is in flight then. bh_step_end is the rest of it. Where
 * bh_engine_info.overlaps is 0 the step is complete when this returns.
 *
 * Further steps may be begun before this one has ended, also of the same layer and cache: on the
 * device they follow one another in the order in which they were begun, and so do reads, writes and
 * copies of the cache's blocks. Each step in flight has buffers of its own for its plan, for
 * pageable tensors, which are copied before this returns, and for results; with two in turn a GPU
 * has no gaps.
 *
 * The batches are taken by move. They are released, and `result` and the memory it points to are
 * used no more, when the step has ended. The step needs neither its binding nor its layer, cache or
 * engine to end: destroying a layer or a cache waits for the device, and the step's results are
 * those that they would have been. Memory of bh_engine_alloc stays alive until the end, as ever.
 */
BH_API int32_t bh_step_begin(bh_binding* binding, const bh_step_part* parts, int64_t count,
                             bh_pending_step** pending, bh_error* error);

/**
 * Waits until the device has done the step; bh_step_end will not wait then. From any thread, for
 * those that want to be told: it sleeps. Not beside the bh_step_end of the same step.
 */
BH_API int32_t bh_step_wait(bh_pending_step* pending, bh_error* error);

/**
 * Waits for the step, brings results to where they belong that the device could not write there,
 * releases the batches and destroys the handle, on every path. From any thread. `stats` may be
 * NULL. Errors are those of the device, and BH_CANCELLED; `result` is unspecified then.
 */
BH_API int32_t bh_step_end(bh_pending_step* pending, bh_step_stats* stats, bh_error* error);

/**
 * The row checks of bh_step alone: finds the first bad row at or after `first_row`, BH_OK if there
 * is none. `batch` is taken by move and released.
 */
BH_API int32_t bh_check_rows(bh_binding* binding, struct ArrowArray* batch, int64_t first_row,
                             bh_error* error);

/* ---- merge of partial results ---------------------------------------------------------------- */

/** One partial result: attention over some of the keys, normalised over those. */
typedef struct bh_partial {
  const void* output; /**< [tokens, num_heads, head_size] */
  const float* lse;   /**< [tokens, num_heads]; -inf or +inf where no key was seen */
} bh_partial;

/**
 * Joins `count` results over disjoint sets of keys by their log-sum-exp:
 * out = sum_i e^(lse_i - lse) out_i with lse = log sum_i e^lse_i, in float32, rounded once; zeros
 * and -inf where no part saw a key. `dtype` is FLOAT32, FLOAT16 or BFLOAT16, of the parts and of
 * `output`; `lse` may be NULL.
 */
BH_API int32_t bh_merge(bh_engine* engine, const bh_partial* parts, int32_t count, int32_t dtype,
                        int64_t tokens, int32_t num_heads, int32_t head_size, void* output,
                        float* lse, bh_error* error);

/* ---- limits of the hardware, for benchmarks to compare with -----------------------------------
 */

/**
 * Reads blocks once, whole and several at a time, with the engine's threads: the memory bandwidth
 * that a decode step over these blocks can have at best. `nanoseconds` gets the time that it took.
 */
BH_API int32_t bh_probe_read(bh_engine* engine, const bh_cache* cache, const int32_t* blocks,
                             int64_t count, int64_t* nanoseconds, bh_error* error);

/**
 * Does `flops` float32 operations (a fused multiply-add counts as two) on registers, with the
 * engine's threads: the peak that a prefill step can have at best.
 */
BH_API int32_t bh_probe_compute(bh_engine* engine, int64_t flops, int64_t* nanoseconds,
                                bh_error* error);

/**
 * Copies `bytes` bytes once with the engine's threads: the bandwidth that a cache update can have
 * at best. The ranges are the caller's and must not overlap.
 */
BH_API int32_t bh_probe_copy(bh_engine* engine, const void* source, void* target, int64_t bytes,
                             int64_t* nanoseconds, bh_error* error);

/* ---- handles and memory ---------------------------------------------------------------------- */

/** Engines, caches, layers, bindings and pending steps that were created and not yet destroyed. */
BH_API int64_t bh_live_handles(void);

/** Address of a release callback for arrays whose memory the caller keeps: it marks the array and
 * its children released and frees nothing. */
BH_API int64_t bh_borrowed_release(void);

/**
 * Host memory that steps of `engine` use in place: for a GPU pinned and mapped into its address
 * space, for a CPU in huge pages where it is large. Both are reused after they are freed, because
 * the system is slow to give them. At least `bytes` bytes at a multiple of 64, or 0 where the
 * system refuses. From any thread; free it before the engine is destroyed.
 */
BH_API int64_t bh_engine_alloc(bh_engine* engine, int64_t bytes);
BH_API void bh_engine_free(bh_engine* engine, int64_t address);

/** `bytes` bytes at a multiple of `alignment` (a power of two), or 0. */
BH_API int64_t bh_alloc(int64_t bytes, int64_t alignment);
BH_API void bh_free(int64_t address);

#ifdef __cplusplus
}
#endif

#endif  // BROADHEAD_H
