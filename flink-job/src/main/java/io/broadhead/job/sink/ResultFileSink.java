// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.sink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.Compression;
import io.broadhead.arrow.FileFailure;
import io.broadhead.attention.RefusedRow;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import org.apache.flink.api.common.serialization.Encoder;
import org.apache.flink.connector.file.sink.FileSink;
import org.apache.flink.core.fs.Path;
import org.apache.flink.streaming.api.functions.sink.filesystem.bucketassigners.BasePathBucketAssigner;
import org.apache.flink.streaming.api.functions.sink.filesystem.rollingpolicies.OnCheckpointRollingPolicy;

/**
 * Flink file sinks for results and refused rows. A file gets its name with the checkpoint that
 * covers it, or at the end of a bounded job without checkpoints; until then it is hidden by a dot.
 */
public final class ResultFileSink {
  /** What the names of result files start with. */
  public static final String RESULTS = "results";

  /** What the names of result files end with. */
  public static final String RESULT_SUFFIX = ".arrow";

  /** What the names of files with refused rows start with. */
  public static final String REFUSED = "refused";

  private ResultFileSink() {}

  /**
   * A bound for file names: every file of {@code kind} that a sink in this JVM begins from now on
   * sorts behind it.
   */
  public static String namesFromNowOn(String kind) {
    return PartNames.next(kind);
  }

  /** Complete Arrow IPC files, whose names sort in the order in which they were begun. */
  public static FileSink<ArrowBatch> results(
      Path folder, ResultLayout layout, Compression compression) {
    return FileSink.forBulkFormat(folder, ArrowIpcBulkWriter.factory(folder.getPath(), compression))
        .withBucketAssigner(new ResultBucketAssigner(layout))
        .withRollingPolicy(OnCheckpointRollingPolicy.build())
        .withOutputFileConfig(new PartNames(RESULTS, RESULT_SUFFIX))
        .build();
  }

  /** Refused rows, one JSON object a line. */
  public static FileSink<RefusedRow> refused(Path folder) {
    String name = folder.getPath();
    Encoder<RefusedRow> lines =
        (row, out) -> {
          try {
            out.write((RefusedRows.json(row) + "\n").getBytes(StandardCharsets.UTF_8));
          } catch (IOException e) {
            throw FileFailure.of(name, e);
          }
        };
    return FileSink.forRowFormat(folder, lines)
        .withBucketAssigner(new BasePathBucketAssigner<>())
        .withRollingPolicy(OnCheckpointRollingPolicy.build())
        .withOutputFileConfig(new PartNames(REFUSED, ".jsonl"))
        .build();
  }
}
