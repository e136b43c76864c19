// SPDX-License-Identifier: Apache-2.0
// The C ABI: handles, and the guard that turns exceptions into statuses.
#include <atomic>
#include <cinttypes>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <system_error>
#include <vector>

#include "broadhead/broadhead.h"
#include "core/backend.h"
#include "core/dtype.h"
#include "core/failure.h"
#include "core/layer_spec.h"
#include "core/step_columns.h"
#include "core/step_reader.h"

namespace {

std::atomic<int64_t> live_handles{0};

/// Counts a handle for as long as it lives.
struct Counted {
  Counted() { live_handles.fetch_add(1, std::memory_order_relaxed); }
  ~Counted() { live_handles.fetch_sub(1, std::memory_order_relaxed); }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
};

/// A C Data structure taken by move: released when it goes out of scope, on every path.
template <class T>
class Moved {
 public:
  explicit Moved(T* source) : value_(*source) { source->release = nullptr; }
  ~Moved() {
    if (value_.release) value_.release(&value_);
  }
  Moved(const Moved&) = delete;
  Moved& operator=(const Moved&) = delete;

  const T& get() const { return value_; }

 private:
  T value_;
};

}  // namespace

struct bh_engine : Counted {
  std::unique_ptr<broadhead::Engine> engine;
};

struct bh_cache : Counted {
  const bh_engine* engine = nullptr;
  std::unique_ptr<broadhead::Cache> cache;
};

struct bh_layer : Counted {
  broadhead::LayerSpec spec;
  broadhead::Cache* cache = nullptr;
  std::unique_ptr<broadhead::Layer> layer;
};

struct bh_binding : Counted {
  bh_binding(bh_layer* bound, broadhead::StepColumns columns)
      : layer(bound), reader(bound->spec, bound->cache, columns) {}
  bh_layer* layer;
  broadhead::StepReader reader;
};

/// A step that was begun: complete, or in flight with the batches that it still reads.
struct bh_pending_step : Counted {
  ~bh_pending_step() {
    flight.reset();
    for (ArrowArray& batch : batches) {
      if (batch.release) batch.release(&batch);
    }
  }
  std::vector<ArrowArray> batches;
  std::unique_ptr<broadhead::StepInFlight> flight;
  bh_step_stats stats{};
};

namespace {

using broadhead::Failure;
using broadhead::kNoRow;

int32_t report(bh_error* error, int32_t code, int64_t row, const char* message) {
  if (error) {
    error->code = code;
    error->row = row;
    std::strncpy(error->message, message, sizeof error->message - 1);
    error->message[sizeof error->message - 1] = '\0';
  }
  return code;
}

template <class Body>
int32_t guarded(bh_error* error, Body&& body) noexcept {
  try {
    body();
    return BH_OK;
  } catch (const Failure& failure) {
    return report(error, failure.code(), failure.row(), failure.what());
  } catch (const std::bad_alloc&) {
    return report(error, BH_OUT_OF_MEMORY, kNoRow, "out of host memory");
  } catch (const std::exception& unexpected) {
    return report(error, BH_INTERNAL, kNoRow, unexpected.what());
  }
}

void need(const void* argument, const char* name) {
  if (!argument) throw Failure(BH_INVALID_ARGUMENT, kNoRow, "%s must not be NULL", name);
}

/// A C Data structure that somebody released, or moved away, is not to be read.
template <class T>
void need_live(const T* structure, const char* name) {
  need(structure, name);
  if (!structure->release) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow, "%s was released before", name);
  }
}

void need_some(int64_t count, const char* name) {
  if (count < 1) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow, "%s must be at least 1, got %" PRId64, name, count);
  }
}

void release_borrowed(ArrowArray* array) {
  // An array may have been refused because children are missing.
  for (int64_t i = 0; array->children && i < array->n_children; ++i) {
    ArrowArray* child = array->children[i];
    if (child && child->release) child->release(child);
  }
  array->release = nullptr;
}

/// Batches taken over where they are: released when this goes out of scope, on every path.
struct ReleasedParts {
  std::span<const bh_step_part> parts;
  ~ReleasedParts() {
    for (const bh_step_part& part : parts) {
      if (part.batch && part.batch->release) part.batch->release(part.batch);
    }
  }
};

/// Checks the parts and starts their step: NULL if it is complete. Does not release the batches.
std::unique_ptr<broadhead::StepInFlight> begin_step(bh_binding* binding,
                                                    std::span<const bh_step_part> parts,
                                                    bh_step_stats& stats) {
  for (const bh_step_part& part : parts) need_live(part.batch, "batch");
  need(binding, "binding");
  for (const bh_step_part& part : parts) need(part.result, "result");
  if (parts.empty()) return nullptr;
  broadhead::StepReader& reader = binding->reader;
  reader.begin_step();
  for (const bh_step_part& part : parts) reader.add_part(*part.batch, *part.result);
  const broadhead::Step step = reader.step();
  std::unique_ptr<broadhead::StepInFlight> flight = binding->layer->layer->begin(step, stats);
  std::span<const broadhead::StepRow> rows(step.rows, static_cast<size_t>(step.num_rows));
  for (const bh_step_part& part : parts) {
    const auto length = static_cast<size_t>(part.batch->length);
    broadhead::write_result_offsets(*part.result, rows.first(length));
    rows = rows.subspan(length);
  }
  return flight;
}

std::span<const bh_step_part> span_of(const bh_step_part* parts, int64_t count) {
  need(parts, "parts");
  if (count < 0 || count > INT32_MAX) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow, "count must be 0 .. %d, got %" PRId64, INT32_MAX,
                  count);
  }
  return {parts, static_cast<size_t>(count)};
}

void check_cache_shape(const broadhead::LayerSpec& spec, const broadhead::Cache* cache) {
  broadhead::check_layer_cache(spec, cache ? cache->options().dtype : 0,
                               cache ? cache->options().block_size : 0);
  if (!cache) return;
  const bh_cache_options& pool = cache->options();
  if (pool.num_kv_heads != spec.num_kv_heads || pool.head_size != spec.head_size) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow,
                  "%s: the cache holds %d KV heads of %d, expected %d of %d", spec.name.c_str(),
                  pool.num_kv_heads, pool.head_size, spec.num_kv_heads, spec.head_size);
  }
}

/// Backends take their own caches for granted.
void check_owner(const bh_cache& cache, const bh_engine* engine) {
  if (cache.engine != engine) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow, "the cache belongs to another engine");
  }
}

void check_block(const broadhead::Cache& cache, int64_t block) {
  if (block < 0 || block >= cache.options().num_blocks) {
    throw Failure(BH_INVALID_ARGUMENT, kNoRow, "block is %" PRId64 ", expected 0 .. %" PRId64,
                  block, cache.options().num_blocks - 1);
  }
}

}  // namespace

int32_t bh_abi_version(void) { return BH_ABI_VERSION; }

int32_t bh_backend_count(void) { return static_cast<int32_t>(broadhead::backends().size()); }

int32_t bh_backend_describe(int32_t index, bh_backend_info* info) {
  return guarded(nullptr, [&] {
    need(info, "info");
    if (index < 0 || index >= bh_backend_count()) {
      throw Failure(BH_INVALID_ARGUMENT, kNoRow, "no backend %d", index);
    }
    *info = broadhead::backends()[static_cast<size_t>(index)]->describe();
  });
}

int32_t bh_engine_create(const bh_engine_options* options, bh_engine** engine, bh_error* error) {
  return guarded(error, [&] {
    need(options, "options");
    need(engine, "engine");
    if (options->struct_size != sizeof *options) {
      throw Failure(BH_INVALID_ARGUMENT, kNoRow,
                    "bh_engine_options.struct_size must be %zu, got %u", sizeof *options,
                    options->struct_size);
    }
    if (options->threads < 0) {
      throw Failure(BH_INVALID_ARGUMENT, kNoRow,
                    "threads must be at least 1 (0: one per core), got %d", options->threads);
    }
    auto handle = std::make_unique<bh_engine>();
    try {
      handle->engine = broadhead::open_engine(*options);
    } catch (const std::system_error& refused) {
      throw Failure(BH_INVALID_ARGUMENT, kNoRow, "threads: the system did not start %d of them: %s",
                    options->threads, refused.what());
    }
    *engine = handle.release();
  });
}

int32_t bh_engine_describe(const bh_engine* engine, bh_engine_info* info) {
  return guarded(nullptr, [&] {
    need(engine, "engine");
    need(info, "info");
    *info = engine->engine->info();
  });
}

void bh_engine_cancel(bh_engine* engine) {
  if (engine) engine->engine->cancel();
}

void bh_engine_destroy(bh_engine* engine) { delete engine; }

int32_t bh_cache_create(bh_engine* engine, const bh_cache_options* options, bh_cache** cache,
                        bh_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    need(options, "options");
    need(cache, "cache");
    broadhead::check_cache(*options);
    auto handle = std::make_unique<bh_cache>();
    handle->engine = engine;
    handle->cache = engine->engine->create_cache(*options);
    *cache = handle.release();
  });
}

int64_t bh_cache_bytes(const bh_cache* cache) { return cache ? cache->cache->bytes() : 0; }

int64_t bh_cache_block_bytes(const bh_cache* cache) {
  if (!cache) return 0;
  const bh_cache_options& pool = cache->cache->options();
  return int64_t{pool.block_size} * pool.num_kv_heads * pool.head_size *
         broadhead::byte_width(pool.dtype);
}

int32_t bh_cache_read_block(const bh_cache* cache, int64_t block, void* key, void* value,
                            bh_error* error) {
  return guarded(error, [&] {
    need(cache, "cache");
    need(key, "key");
    need(value, "value");
    check_block(*cache->cache, block);
    cache->cache->read_block(block, key, value);
  });
}

int32_t bh_cache_write_block(bh_cache* cache, int64_t block, const void* key, const void* value,
                             bh_error* error) {
  return guarded(error, [&] {
    need(cache, "cache");
    need(key, "key");
    need(value, "value");
    check_block(*cache->cache, block);
    cache->cache->write_block(block, key, value);
  });
}

int32_t bh_cache_copy_blocks(bh_cache* cache, const int64_t* source, const int64_t* target,
                             int64_t count, bh_error* error) {
  return guarded(error, [&] {
    need(cache, "cache");
    if (count < 0) {
      throw Failure(BH_INVALID_ARGUMENT, kNoRow, "count must not be negative, got %" PRId64, count);
    }
    if (count > 0) {
      need(source, "source");
      need(target, "target");
    }
    for (int64_t i = 0; i < count; ++i) {
      check_block(*cache->cache, source[i]);
      check_block(*cache->cache, target[i]);
    }
    for (int64_t i = 0; i < count; ++i) cache->cache->copy_block(source[i], target[i]);
  });
}

void bh_cache_destroy(bh_cache* cache) { delete cache; }

int32_t bh_layer_supported(const bh_engine* engine, const bh_layer_options* options,
                           int32_t cache_dtype, int32_t block_size, bh_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    need(options, "options");
    broadhead::LayerSpec spec = broadhead::check_layer(*options);
    broadhead::check_layer_cache(spec, cache_dtype, block_size);
    engine->engine->check_supported(spec, cache_dtype, block_size);
  });
}

int32_t bh_layer_create(bh_engine* engine, const bh_layer_options* options, bh_cache* cache,
                        bh_layer** layer, bh_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    need(options, "options");
    need(layer, "layer");
    auto handle = std::make_unique<bh_layer>();
    handle->spec = broadhead::check_layer(*options);
    if (cache) check_owner(*cache, engine);
    handle->cache = cache ? cache->cache.get() : nullptr;
    check_cache_shape(handle->spec, handle->cache);
    engine->engine->check_supported(handle->spec, cache ? handle->cache->options().dtype : 0,
                                    cache ? handle->cache->options().block_size : 0);
    handle->layer = engine->engine->create_layer(handle->spec, handle->cache);
    *layer = handle.release();
  });
}

void bh_layer_destroy(bh_layer* layer) { delete layer; }

int32_t bh_binding_create(bh_layer* layer, ArrowSchema* schema, bh_binding** binding,
                          bh_error* error) {
  return guarded(error, [&] {
    need_live(schema, "schema");
    Moved<ArrowSchema> taken(schema);
    need(layer, "layer");
    need(binding, "binding");
    *binding = new bh_binding(layer, broadhead::find_columns(layer->spec, taken.get()));
  });
}

void bh_binding_destroy(bh_binding* binding) { delete binding; }

int32_t bh_step(bh_binding* binding, ArrowArray* batch, ArrowArray* result, bh_step_stats* stats,
                bh_error* error) {
  const bh_step_part part{batch, result};
  return bh_step_parts(binding, &part, 1, stats, error);
}

int32_t bh_step_parts(bh_binding* binding, const bh_step_part* parts, int64_t count,
                      bh_step_stats* stats, bh_error* error) {
  return guarded(error, [&] {
    const ReleasedParts taken{span_of(parts, count)};
    bh_step_stats done{};
    const auto flight = begin_step(binding, taken.parts, done);
    if (flight) flight->end(done);
    if (stats && count > 0) *stats = done;
  });
}

int32_t bh_step_begin(bh_binding* binding, const bh_step_part* parts, int64_t count,
                      bh_pending_step** pending, bh_error* error) {
  return guarded(error, [&] {
    const ReleasedParts taken{span_of(parts, count)};
    need(pending, "pending");
    auto handle = std::make_unique<bh_pending_step>();
    handle->batches.reserve(taken.parts.size());
    handle->flight = begin_step(binding, taken.parts, handle->stats);
    if (handle->flight) {
      for (const bh_step_part& part : taken.parts) {
        handle->batches.push_back(*part.batch);
        part.batch->release = nullptr;
      }
    }
    *pending = handle.release();
  });
}

int32_t bh_step_wait(bh_pending_step* pending, bh_error* error) {
  return guarded(error, [&] {
    need(pending, "pending");
    if (pending->flight) pending->flight->wait();
  });
}

int32_t bh_step_end(bh_pending_step* pending, bh_step_stats* stats, bh_error* error) {
  return guarded(error, [&] {
    need(pending, "pending");
    const std::unique_ptr<bh_pending_step> taken(pending);
    if (taken->flight) taken->flight->end(taken->stats);
    if (stats) *stats = taken->stats;
  });
}

int32_t bh_check_rows(bh_binding* binding, ArrowArray* batch, int64_t first_row, bh_error* error) {
  return guarded(error, [&] {
    need_live(batch, "batch");
    Moved<ArrowArray> taken(batch);
    need(binding, "binding");
    if (first_row < 0) {
      throw Failure(BH_INVALID_ARGUMENT, kNoRow, "first_row must not be negative, got %" PRId64,
                    first_row);
    }
    binding->reader.open(taken.get());
    for (int64_t r = first_row; r < binding->reader.num_rows(); ++r) binding->reader.row(r);
  });
}

int32_t bh_merge(bh_engine* engine, const bh_partial* parts, int32_t count, int32_t dtype,
                 int64_t tokens, int32_t num_heads, int32_t head_size, void* output, float* lse,
                 bh_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    need(parts, "parts");
    need_some(count, "count");
    if (dtype != BH_FLOAT32 && dtype != BH_FLOAT16 && dtype != BH_BFLOAT16) {
      throw Failure(BH_INVALID_ARGUMENT, kNoRow,
                    "dtype must be float32, float16 or bfloat16, got %s",
                    broadhead::dtype_name(dtype));
    }
    broadhead::check_heads("merge", "num_heads", num_heads, head_size);
    // Few enough for the bytes of all parts and of the result to be counted, with room to spare.
    const auto token_bytes = int64_t{8} * int64_t{sizeof(float)} * num_heads * head_size;
    const int64_t most = INT64_MAX / token_bytes / (int64_t{count} + 1);
    if (tokens < 0 || tokens > most) {
      throw Failure(BH_INVALID_ARGUMENT, kNoRow, "tokens must be 0 .. %" PRId64 ", got %" PRId64,
                    most, tokens);
    }
    if (tokens == 0) return;
    need(output, "output");
    for (int32_t i = 0; i < count; ++i) {
      need(parts[i].output, "parts.output");
      need(parts[i].lse, "parts.lse");
    }
    engine->engine->merge({parts, static_cast<size_t>(count)}, dtype, tokens, num_heads, head_size,
                          output, lse);
  });
}

int32_t bh_probe_read(bh_engine* engine, const bh_cache* cache, const int32_t* blocks,
                      int64_t count, int64_t* nanoseconds, bh_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    need(cache, "cache");
    need(blocks, "blocks");
    need(nanoseconds, "nanoseconds");
    need_some(count, "count");
    check_owner(*cache, engine);
    for (int64_t i = 0; i < count; ++i) check_block(*cache->cache, blocks[i]);
    *nanoseconds = engine->engine->probe_read(*cache->cache, {blocks, static_cast<size_t>(count)});
  });
}

int32_t bh_probe_compute(bh_engine* engine, int64_t flops, int64_t* nanoseconds, bh_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    need(nanoseconds, "nanoseconds");
    need_some(flops, "flops");
    *nanoseconds = engine->engine->probe_compute(flops);
  });
}

int32_t bh_probe_copy(bh_engine* engine, const void* source, void* target, int64_t bytes,
                      int64_t* nanoseconds, bh_error* error) {
  return guarded(error, [&] {
    need(engine, "engine");
    need(source, "source");
    need(target, "target");
    need(nanoseconds, "nanoseconds");
    need_some(bytes, "bytes");
    *nanoseconds = engine->engine->probe_copy(source, target, bytes);
  });
}

int64_t bh_live_handles(void) { return live_handles.load(); }

int64_t bh_borrowed_release(void) { return reinterpret_cast<int64_t>(&release_borrowed); }

int64_t bh_engine_alloc(bh_engine* engine, int64_t bytes) {
  void* memory = nullptr;
  const int32_t status = guarded(nullptr, [&] {
    need(engine, "engine");
    if (bytes < 0) throw Failure(BH_INVALID_ARGUMENT, kNoRow, "bytes must not be negative");
    memory = engine->engine->allocate_host(bytes > 0 ? bytes : 1);
  });
  return status == BH_OK ? reinterpret_cast<int64_t>(memory) : 0;
}

void bh_engine_free(bh_engine* engine, int64_t address) {
  if (engine && address) engine->engine->free_host(reinterpret_cast<void*>(address));
}

int64_t bh_alloc(int64_t bytes, int64_t alignment) {
  if (bytes < 0 || alignment < static_cast<int64_t>(sizeof(void*)) ||
      (alignment & (alignment - 1)) != 0) {
    return 0;
  }
  void* memory = nullptr;
  const auto size = static_cast<size_t>(bytes > 0 ? bytes : alignment);
  if (posix_memalign(&memory, static_cast<size_t>(alignment), size) != 0) return 0;
  return reinterpret_cast<int64_t>(memory);
}

void bh_free(int64_t address) { std::free(reinterpret_cast<void*>(address)); }
