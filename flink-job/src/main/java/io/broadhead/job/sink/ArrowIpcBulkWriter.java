// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.sink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.ArrowBatchFileWriter;
import io.broadhead.arrow.Compression;
import io.broadhead.flink.FlinkAllocator;
import java.io.IOException;
import org.apache.flink.api.common.serialization.BulkWriter;
import org.apache.flink.core.fs.FSDataOutputStream;

/**
 * Writes one Arrow IPC file of Flink's file sink. The file has the schema of its first batch; the
 * bucket assigner sees to it that no other comes.
 */
final class ArrowIpcBulkWriter implements BulkWriter<ArrowBatch> {
  private final ArrowBatchFileWriter file;
  private final FSDataOutputStream out;

  private ArrowIpcBulkWriter(ArrowBatchFileWriter file, FSDataOutputStream out) {
    this.file = file;
    this.out = out;
  }

  /**
   * Makes writers; serializable.
   *
   * @param folder of the files, for errors: Flink does not tell which file it is
   */
  static BulkWriter.Factory<ArrowBatch> factory(String folder, Compression compression) {
    return out ->
        new ArrowIpcBulkWriter(
            ArrowBatchFileWriter.to(out, folder, compression, FlinkAllocator.root()), out);
  }

  @Override
  public void addElement(ArrowBatch batch) throws IOException {
    try {
      file.write(batch);
    } finally {
      if (batch.isReceived()) {
        batch.close();
      }
    }
  }

  @Override
  public void flush() throws IOException {
    out.flush();
  }

  /** Writes the footer; Flink closes the file. */
  @Override
  public void finish() throws IOException {
    file.finish();
    file.close();
  }
}
