// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

import static java.nio.charset.StandardCharsets.UTF_8;

import io.broadhead.arrow.DType;
import io.broadhead.nativelib.bh_error;
import io.broadhead.nativelib.bh_layer;
import io.broadhead.nativelib.bh_layer_options;
import io.broadhead.nativelib.bh_rope;
import io.broadhead.nativelib.global.broadhead;
import java.util.Optional;
import java.util.function.Function;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;

/**
 * One attention layer on an engine and, unless it is an encoder, a cache, which it keeps alive. Its
 * owner closes it; bindings that are still open keep it alive. Used by one thread at a time.
 */
public final class KernelLayer extends NativeHandle {
  private final bh_layer handle = new bh_layer();
  private final LayerConfig config;
  private final KernelCache cache;

  /**
   * @param cache null for the encoder types
   * @throws KernelException with the reason if the backend cannot run the layer
   */
  public KernelLayer(KernelEngine engine, LayerConfig config, KernelCache cache) {
    super("layer " + config.name(), engine, cache);
    this.config = config;
    this.cache = cache;
    try {
      NativeErrors.check(
          error ->
              withOptions(
                  config,
                  options ->
                      broadhead.bh_layer_create(
                          engine.handle(),
                          options,
                          cache == null ? null : cache.handle(),
                          handle,
                          error)));
    } catch (RuntimeException e) {
      abandon();
      throw e;
    }
  }

  /**
   * Asks whether {@code engine} can run the layer.
   *
   * @param cacheDType null for the encoder types
   * @return the reason why not, or empty if it can
   */
  public static Optional<KernelException> unsupported(
      KernelEngine engine, LayerConfig config, DType cacheDType, int blockSize) {
    engine.enter();
    try (bh_error error = new bh_error()) {
      int status =
          withOptions(
              config,
              options ->
                  broadhead.bh_layer_supported(
                      engine.handle(),
                      options,
                      cacheDType == null ? 0 : cacheDType.code(),
                      blockSize,
                      error));
      return status == broadhead.BH_OK
          ? Optional.empty()
          : Optional.of(NativeErrors.toException(status, error));
    } finally {
      engine.exit();
    }
  }

  private static int withOptions(LayerConfig config, Function<bh_layer_options, Integer> call) {
    try (bh_layer_options options = new bh_layer_options();
        BytePointer name = new BytePointer(config.name(), UTF_8);
        FloatPointer slopes = floats(config.alibiSlopes());
        FloatPointer sinks = floats(config.sinks());
        FloatPointer table = floats(config.rope() == null ? null : config.rope().cosSin());
        bh_rope rope = config.rope() == null ? null : new bh_rope()) {
      if (rope != null) {
        rope.rotary_dim(config.rope().rotaryDim())
            .max_position(config.rope().maxPosition())
            .is_neox(config.rope().neox() ? 1 : 0)
            .cos_sin(table);
      }
      options
          .struct_size((int) options.sizeof())
          .name(name)
          .num_heads(config.numHeads())
          .num_kv_heads(config.numKvHeads())
          .head_size(config.headSize())
          .attn_type(config.attentionType().code())
          .dtype(config.dtype().code())
          .scale(config.scale())
          .sliding_window(config.slidingWindow())
          .logits_soft_cap(config.logitsSoftCap())
          .alibi_slopes(slopes)
          .sinks(sinks)
          .k_scale(config.kScale())
          .v_scale(config.vScale())
          .output_scale(config.outputScale())
          .return_lse(config.returnLse() ? 1 : 0)
          .read_only_cache(config.readOnlyCache() ? 1 : 0)
          .rope(rope);
      return call.apply(options);
    }
  }

  private static FloatPointer floats(float[] values) {
    return values == null ? null : new FloatPointer(values);
  }

  public LayerConfig config() {
    return config;
  }

  /** The cache of this layer, or null. */
  public KernelCache cache() {
    return cache;
  }

  bh_layer handle() {
    return handle;
  }

  @Override
  void destroy() {
    broadhead.bh_layer_destroy(handle);
  }
}
