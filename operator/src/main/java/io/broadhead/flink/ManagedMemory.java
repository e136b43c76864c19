// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.kernel.ErrorCode;
import io.broadhead.kernel.KernelException;
import org.apache.flink.configuration.TaskManagerOptions;
import org.apache.flink.core.memory.ManagedMemoryUseCase;
import org.apache.flink.runtime.execution.Environment;
import org.apache.flink.runtime.memory.MemoryManager;
import org.apache.flink.runtime.memory.MemoryReservationException;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;

/**
 * The part of the TaskManager's managed memory that stands for an operator's KV caches while it is
 * open. Flink only counts it: the caches allocate for themselves.
 */
final class ManagedMemory implements AutoCloseable {
  private final Object owner;
  private final MemoryManager manager;
  private final long budget;
  private long reserved;

  private ManagedMemory(Object owner, MemoryManager manager, long budget, long reserved) {
    this.owner = owner;
    this.manager = manager;
    this.budget = budget;
    this.reserved = reserved;
  }

  /**
   * Reserves {@code bytes} of the share that the job graph declares for {@code operator}; nothing
   * if it declares none.
   *
   * @throws KernelException {@link ErrorCode#OUT_OF_MEMORY} naming the budget and the keys to
   *     change
   */
  static ManagedMemory reserve(AbstractStreamOperator<?> operator, long bytes) {
    Environment environment = operator.getContainingTask().getEnvironment();
    double fraction =
        operator
            .getOperatorConfig()
            .getManagedMemoryFractionOperatorUseCaseOfSlot(
                ManagedMemoryUseCase.OPERATOR,
                environment.getJobConfiguration(),
                environment.getTaskManagerInfo().getConfiguration(),
                operator.getUserCodeClassloader());
    MemoryManager manager = environment.getMemoryManager();
    if (fraction <= 0 || bytes == 0) {
      return new ManagedMemory(operator, manager, 0, 0);
    }
    long budget = manager.computeMemorySize(fraction);
    if (bytes > budget) {
      throw exhausted(bytes, budget, manager);
    }
    try {
      manager.reserveMemory(operator, bytes);
    } catch (MemoryReservationException e) {
      throw exhausted(bytes, budget, manager);
    }
    return new ManagedMemory(operator, manager, budget, bytes);
  }

  private static KernelException exhausted(long bytes, long budget, MemoryManager manager) {
    return new KernelException(
        ErrorCode.OUT_OF_MEMORY,
        -1,
        "the KV caches of this subtask need "
            + bytes
            + " bytes of managed memory; the operator's share is "
            + budget
            + " of the slot's "
            + manager.getMemorySize()
            + " bytes ("
            + manager.availableMemory()
            + " free). Raise "
            + TaskManagerOptions.MANAGED_MEMORY_SIZE.key()
            + ", or lower kv_cache.num_blocks in the job file");
  }

  @Override
  public void close() {
    if (reserved > 0) {
      manager.releaseMemory(owner, reserved);
      reserved = 0;
    }
  }

  @Override
  public String toString() {
    return reserved == 0
        ? "no managed memory declared"
        : "managed memory " + reserved + " of " + budget + " bytes";
  }
}
