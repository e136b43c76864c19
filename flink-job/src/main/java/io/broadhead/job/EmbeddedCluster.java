// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import java.time.Duration;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.apache.flink.api.common.JobID;
import org.apache.flink.api.common.RuntimeExecutionMode;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.ExecutionOptions;
import org.apache.flink.configuration.HeartbeatManagerOptions;
import org.apache.flink.configuration.MemorySize;
import org.apache.flink.configuration.RestOptions;
import org.apache.flink.configuration.RestartStrategyOptions;
import org.apache.flink.configuration.TaskManagerOptions;
import org.apache.flink.runtime.jobmaster.JobResult;
import org.apache.flink.runtime.minicluster.MiniCluster;
import org.apache.flink.runtime.minicluster.MiniClusterConfiguration;
import org.apache.flink.streaming.api.graph.StreamGraph;

/**
 * A Flink cluster in this JVM for one job. {@link #close} returns when every thread of the cluster
 * has ended, so that nothing of the job is left behind.
 */
@SuppressWarnings("try") // closing Flink's cluster may be interrupted
final class EmbeddedCluster implements AutoCloseable {
  private final MiniCluster cluster;
  private JobID job;

  /** Null before a job was submitted. */
  private volatile CompletableFuture<JobResult> result;

  /** Starts a cluster of {@code slots} slots. */
  EmbeddedCluster(Configuration configuration, int slots) throws Exception {
    cluster =
        new MiniCluster(
            new MiniClusterConfiguration.Builder()
                .setConfiguration(configuration)
                .setNumTaskManagers(1)
                .setNumSlotsPerTaskManager(slots)
                .build());
    cluster.start();
  }

  /**
   * What an embedded cluster needs to differ from Flink's defaults. A run that fails is reported at
   * once: its input is on this machine and running it again is one command. KV caches and Arrow
   * buffers lie outside Flink's memory, so the managed part can be small.
   */
  static Configuration defaults() {
    Configuration configuration = new Configuration();
    configuration.set(RestartStrategyOptions.RESTART_STRATEGY, "none");
    configuration.set(ExecutionOptions.RUNTIME_MODE, RuntimeExecutionMode.STREAMING);
    configuration.set(RestOptions.BIND_PORT, "0");
    configuration.set(RestOptions.BIND_ADDRESS, "localhost");
    configuration.set(TaskManagerOptions.MANAGED_MEMORY_SIZE, MemorySize.ofMebiBytes(64));
    configuration.set(HeartbeatManagerOptions.HEARTBEAT_TIMEOUT, Duration.ofMinutes(5));
    return configuration;
  }

  /** Submits {@code graph}, whose job is the one that {@link #await} waits for. */
  void submit(StreamGraph graph) throws Exception {
    job = cluster.submitJob(graph.getJobGraph()).get().getJobID();
    result = cluster.requestJobResult(job);
  }

  /** Waits up to {@code millis} for the job; empty: it is still running. */
  Optional<JobResult> await(long millis) throws InterruptedException, ExecutionException {
    try {
      return Optional.of(result.get(millis, TimeUnit.MILLISECONDS));
    } catch (TimeoutException e) {
      return Optional.empty();
    }
  }

  /** Asks the job, if there is one, to end, and waits up to {@code millis} until it has. */
  void cancel(long millis) throws InterruptedException, ExecutionException {
    if (result != null) {
      cluster.cancelJob(job);
      await(millis);
    }
  }

  @Override
  public void close() throws Exception {
    cluster.close();
  }
}
