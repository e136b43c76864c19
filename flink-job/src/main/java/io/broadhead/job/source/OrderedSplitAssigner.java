// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.source;

import java.util.ArrayList;
import java.util.Collection;
import java.util.Comparator;
import java.util.Optional;
import java.util.TreeSet;
import org.apache.flink.connector.file.src.FileSourceSplit;
import org.apache.flink.connector.file.src.assigners.FileSplitAssigner;

/**
 * Hands splits out by path and offset, so that one reader sees batches in the order of the files,
 * also after a failure gave some of them back. Used by the enumerator's thread alone.
 */
final class OrderedSplitAssigner implements FileSplitAssigner {
  private static final Comparator<FileSourceSplit> INPUT_ORDER =
      Comparator.comparing((FileSourceSplit split) -> split.path().getPath())
          .thenComparingLong(FileSourceSplit::offset)
          .thenComparing(FileSourceSplit::splitId);

  private final TreeSet<FileSourceSplit> splits = new TreeSet<>(INPUT_ORDER);

  OrderedSplitAssigner(Collection<FileSourceSplit> splits) {
    this.splits.addAll(splits);
  }

  @Override
  public Optional<FileSourceSplit> getNext(String hostname) {
    return Optional.ofNullable(splits.pollFirst());
  }

  @Override
  public void addSplits(Collection<FileSourceSplit> added) {
    splits.addAll(added);
  }

  @Override
  public Collection<FileSourceSplit> remainingSplits() {
    return new ArrayList<>(splits);
  }
}
