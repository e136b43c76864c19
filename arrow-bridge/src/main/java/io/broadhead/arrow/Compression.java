// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import java.util.Arrays;
import java.util.stream.Collectors;
import org.apache.arrow.compression.CommonsCompressionFactory;
import org.apache.arrow.flatbuf.CompressionType;
import org.apache.arrow.vector.compression.CompressionCodec;
import org.apache.arrow.vector.compression.CompressionUtil.CodecType;

/** Body compression of an IPC file. Writing LZ4 runs in Java and is slow: prefer ZSTD. */
public enum Compression {
  NONE("none", (byte) -1, null),
  LZ4("lz4", CompressionType.LZ4_FRAME, CodecType.LZ4_FRAME),
  ZSTD("zstd", CompressionType.ZSTD, CodecType.ZSTD);

  private final String label;
  private final byte flatbufferType;
  private final CodecType codecType;

  Compression(String label, byte flatbufferType, CodecType codecType) {
    this.label = label;
    this.flatbufferType = flatbufferType;
    this.codecType = codecType;
  }

  /** The name used in options. */
  public String label() {
    return label;
  }

  byte flatbufferType() {
    return flatbufferType;
  }

  CompressionCodec codec() {
    return CommonsCompressionFactory.INSTANCE.createCodec(codecType);
  }

  /**
   * The compression called {@code label}.
   *
   * @throws IllegalArgumentException naming the accepted labels
   */
  public static Compression parse(String label) {
    for (Compression compression : values()) {
      if (compression.label.equals(label)) {
        return compression;
      }
    }
    throw new IllegalArgumentException(
        "compression: expected one of "
            + Arrays.stream(values()).map(Compression::label).collect(Collectors.joining(", "))
            + ", got "
            + label);
  }

  @Override
  public String toString() {
    return label;
  }
}
