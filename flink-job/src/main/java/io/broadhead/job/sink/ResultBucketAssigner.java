// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.sink;

import io.broadhead.arrow.ArrowBatch;
import org.apache.flink.core.io.SimpleVersionedSerializer;
import org.apache.flink.streaming.api.functions.sink.filesystem.BucketAssigner;
import org.apache.flink.streaming.api.functions.sink.filesystem.bucketassigners.SimpleVersionedStringSerializer;

/** One bucket for each group of results that can share a file; the only group has no folder. */
final class ResultBucketAssigner implements BucketAssigner<ArrowBatch, String> {
  private static final long serialVersionUID = 1L;

  private final ResultLayout layout;

  ResultBucketAssigner(ResultLayout layout) {
    this.layout = layout;
  }

  @Override
  public String getBucketId(ArrowBatch result, Context context) {
    return layout.groupOf(result);
  }

  @Override
  public SimpleVersionedSerializer<String> getSerializer() {
    return SimpleVersionedStringSerializer.INSTANCE;
  }
}
