// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

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

  @Override
  public String toString() {
    return label;
  }
}
