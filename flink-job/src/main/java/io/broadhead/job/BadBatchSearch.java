// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.arrow.Allocators;
import io.broadhead.arrow.ArrowBatch;
import io.broadhead.arrow.StepInput;
import io.broadhead.attention.AttentionConfig;
import io.broadhead.attention.InvalidBatchException;
import io.broadhead.attention.PagedAttention;
import io.broadhead.attention.job.Job;
import io.broadhead.flink.ShardKey;
import java.io.IOException;
import java.nio.file.Path;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.flink.runtime.client.JobExecutionException;

/**
 * Looks in the input for the batch that a job stumbled over: an operator knows it only by its rows,
 * and those of one subtask.
 */
final class BadBatchSearch {
  private final RunCommand options;
  private final Job job;
  private final ShardKey shards;

  BadBatchSearch(RunCommand options, Job job, int shards) {
    this.options = options;
    this.job = job;
    this.shards = new ShardKey(shards, RunCommand.MOST_SHARDS);
  }

  /** A failure that says where the batch is, or {@code failure} if that is due to none. */
  Exception explained(JobExecutionException failure, Path input) {
    Throwable cause = failure;
    while (cause != null && !(cause instanceof InvalidBatchException)) {
      cause = cause.getCause();
    }
    if (cause == null) {
      return failure;
    }
    try (BufferAllocator allocator = Allocators.root();
        PagedAttention attention =
            PagedAttention.open(
                job,
                new AttentionConfig(options.backend, 1, options.device, options.pool.outOfBlocks),
                allocator);
        StepInput steps = StepInput.open(input, allocator)) {
      Problems problems =
          new Problems(
              batch -> attention.rehearse(batch, shards.keys(batch)),
              row -> !options.onBadRow.leavesOut(row.code(), options.pool.outOfBlocks));
      for (ArrowBatch batch = steps.next(); batch != null; batch = steps.next()) {
        try (ArrowBatch open = batch) {
          problems.check(steps.origin(), open);
        }
        if (!problems.all().isEmpty()) {
          return new WorkFailedException(problems.all().get(0), failure);
        }
      }
    } catch (IOException | RuntimeException e) {
      failure.addSuppressed(e);
    }
    return failure;
  }
}
