// SPDX-License-Identifier: Apache-2.0
#include "target.h"

#include <cstdlib>

namespace broadhead::test {
namespace {

void check(int32_t status, const bh_error& error) {
  if (status == BH_UNSUPPORTED) throw Unsupported(error.message);
  if (status != BH_OK) throw std::runtime_error(error.message);
}

}  // namespace

Options& options() {
  static Options options;
  return options;
}

std::vector<Target> targets() {
  const std::string& backend = options().backend;
  if (backend != "cpu") return {{backend, "", options().device}};
#if defined(__x86_64__)
  return {{"cpu", "amx"},
          {"cpu", "avx512_bf16"},
          {"cpu", "avx512"},
          {"cpu", "avx2"},
          {"cpu", "baseline"}};
#else
  return {{"cpu", "neon"}};
#endif
}

Engine open_engine(const Target& target, int threads, std::string& reason) {
  if (target.tier.empty()) {
    unsetenv("BROADHEAD_CPU_TIER");
  } else {
    setenv("BROADHEAD_CPU_TIER", target.tier.c_str(), 1);
  }
  bh_engine_options options{};
  options.struct_size = sizeof options;
  options.backend = target.backend.c_str();
  options.threads = threads;
  options.device = target.device;
  bh_engine* engine = nullptr;
  bh_error error{};
  if (bh_engine_create(&options, &engine, &error) != BH_OK) reason = error.message;
  unsetenv("BROADHEAD_CPU_TIER");
  return Engine(engine);
}

Cache make_cache(bh_engine* engine, const bh_cache_options& options) {
  bh_cache* cache = nullptr;
  bh_error error{};
  check(bh_cache_create(engine, &options, &cache, &error), error);
  return Cache(cache);
}

Layer make_layer(bh_engine* engine, const LayerConfig& config, bh_cache* cache) {
  bh_rope rope;
  const bh_layer_options options = config.options(rope);
  bh_layer* layer = nullptr;
  bh_error error{};
  check(bh_layer_create(engine, &options, cache, &layer, &error), error);
  return Layer(layer);
}

Binding make_binding(bh_layer* layer, const Field& schema) {
  ArrowSchema exported = export_schema(schema);
  bh_binding* binding = nullptr;
  bh_error error{};
  check(bh_binding_create(layer, &exported, &binding, &error), error);
  return Binding(binding);
}

}  // namespace broadhead::test
