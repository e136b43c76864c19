// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.cache;

import java.util.ArrayList;
import java.util.List;
import java.util.Objects;

/**
 * What a saved cache is a cache of: a job can only go on with it if its layers are the same.
 *
 * <p>Format 1: whether block tables were managed; whether contents were saved; shards; block size;
 * count of the layers with a cache, and of each its name, that of the layer whose cache it uses, KV
 * heads, head size and the stored element type. Format 2: its scales, too.
 *
 * @param managed whether block tables were managed
 * @param contents whether keys and values were saved, or only which sequences there are
 * @param shards that sequences are divided into
 * @param layers those with a cache
 */
public record CacheHeader(
    boolean managed, boolean contents, int shards, int blockSize, List<Layer> layers) {
  static final int VERSION = 2;

  /** Format 1 does not say. */
  static final float UNKNOWN_SCALE = 0;

  /**
   * A layer with a cache.
   *
   * @param owner name of the layer whose cache it uses
   * @param dtype stored element type; empty while its first batch has not settled that
   * @param kScale what stored keys are to be multiplied by, or {@link #UNKNOWN_SCALE}
   * @param vScale the same of values
   */
  public record Layer(
      String name,
      String owner,
      int numKvHeads,
      int headSize,
      String dtype,
      float kScale,
      float vScale) {}

  public CacheHeader {
    layers = List.copyOf(layers);
  }

  public byte[] toBytes() {
    RecordWriter writer =
        new RecordWriter(VERSION)
            .flag(managed)
            .flag(contents)
            .number(shards)
            .number(blockSize)
            .number(layers.size());
    for (Layer layer : layers) {
      writer
          .text(layer.name)
          .text(layer.owner)
          .number(layer.numKvHeads)
          .number(layer.headSize)
          .text(layer.dtype)
          .decimal(layer.kScale)
          .decimal(layer.vScale);
    }
    return writer.toBytes();
  }

  /**
   * @throws IllegalStateException if a newer program wrote the bytes
   */
  public static CacheHeader of(byte[] bytes) {
    RecordReader reader = new RecordReader(bytes, "header of a cache", VERSION);
    boolean managed = reader.flag();
    boolean contents = reader.flag();
    int shards = reader.integer();
    int blockSize = reader.integer();
    int count = reader.integer();
    List<Layer> layers = new ArrayList<>(count);
    for (int i = 0; i < count; i++) {
      boolean hasScales = reader.version() >= 2;
      layers.add(
          new Layer(
              reader.text(),
              reader.text(),
              reader.integer(),
              reader.integer(),
              reader.text(),
              hasScales ? reader.decimal() : UNKNOWN_SCALE,
              hasScales ? reader.decimal() : UNKNOWN_SCALE));
    }
    return new CacheHeader(managed, contents, shards, blockSize, layers);
  }

  /**
   * Checks that a job with the header {@code now} can go on with a cache of this one.
   *
   * @throws IllegalStateException naming the key that differs
   */
  public void requireFits(CacheHeader now) {
    if (contents && !now.contents) {
      same("broadhead.state", "full", "metadata");
    }
    same("broadhead.shards", shards, now.shards);
    same("kv_cache.block_size", blockSize, now.blockSize);
    same(
        "layers",
        layers.stream().map(Layer::name).toList(),
        now.layers.stream().map(Layer::name).toList());
    for (int i = 0; i < layers.size(); i++) {
      Layer then = layers.get(i);
      Layer layer = now.layers.get(i);
      String path = "layer '" + then.name + "': ";
      same(path + "kv_sharing_target_layer_name", then.owner, layer.owner);
      same(path + "num_kv_heads", then.numKvHeads, layer.numKvHeads);
      same(path + "head_size", then.headSize, layer.headSize);
      if (!then.dtype.isEmpty() && !layer.dtype.isEmpty()) {
        same(path + "kv_cache_dtype", then.dtype, layer.dtype);
      }
      if (contents && then.kScale != UNKNOWN_SCALE) {
        same(path + "k_scale", then.kScale, layer.kScale);
        same(path + "v_scale", then.vScale, layer.vScale);
      }
    }
  }

  private static void same(String key, Object then, Object now) {
    if (!Objects.equals(then, now)) {
      throw new IllegalStateException(
          key + ": expected " + then + ", as when the state was written, got " + now);
    }
  }
}
