// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.flink.PagedAttentionMetrics;
import java.util.Map;
import java.util.Properties;
import java.util.Queue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.metrics.Counter;
import org.apache.flink.metrics.Metric;
import org.apache.flink.metrics.MetricConfig;
import org.apache.flink.metrics.MetricGroup;
import org.apache.flink.metrics.reporter.MetricReporter;
import org.apache.flink.metrics.reporter.MetricReporterFactory;

/**
 * Reads the operator's counters while an embedded cluster runs and after it has ended: a metric
 * reporter that keeps what it is told about. Registered by name in the cluster's configuration,
 * which is all that Flink passes to a reporter.
 *
 * <p>Filled by Flink's metric threads, read by the command's thread; a sum may be a step behind.
 */
final class RunMetrics implements MetricReporter, AutoCloseable {
  private static final String PREFIX = "metrics.reporter.run.";
  private static final String ID = "id";
  private static final AtomicLong IDS = new AtomicLong();
  private static final Map<String, RunMetrics> OPEN = new ConcurrentHashMap<>();

  private final String id = Long.toString(IDS.incrementAndGet());
  private final Map<String, Queue<Counter>> counters = new ConcurrentHashMap<>();

  private RunMetrics() {}

  /** Metrics of a cluster that is started with {@code configuration}. */
  static RunMetrics attachTo(Configuration configuration) {
    RunMetrics metrics = new RunMetrics();
    OPEN.put(metrics.id, metrics);
    configuration.setString(PREFIX + "factory.class", Factory.class.getName());
    configuration.setString(PREFIX + ID, metrics.id);
    return metrics;
  }

  /** Sum over all subtasks and attempts; 0 if there is no such counter. */
  long sum(String name) {
    return counters.getOrDefault(name, new ConcurrentLinkedQueue<>()).stream()
        .mapToLong(Counter::getCount)
        .sum();
  }

  @Override
  public void notifyOfAddedMetric(Metric metric, String name, MetricGroup group) {
    if (metric instanceof Counter counter
        && group.getMetricIdentifier(name).contains("." + PagedAttentionMetrics.GROUP + ".")) {
      counters.computeIfAbsent(name, n -> new ConcurrentLinkedQueue<>()).add(counter);
    }
  }

  /** Keeps the metric: its last value is part of the sum. */
  @Override
  public void notifyOfRemovedMetric(Metric metric, String name, MetricGroup group) {}

  @Override
  public void open(MetricConfig config) {}

  @Override
  public void close() {
    OPEN.remove(id);
  }

  /** Finds the reporter that a cluster's configuration names. */
  public static final class Factory implements MetricReporterFactory {
    @Override
    public MetricReporter createMetricReporter(Properties properties) {
      RunMetrics metrics = OPEN.get(properties.getProperty(ID));
      if (metrics == null) {
        throw new IllegalStateException(
            "no run of that id in this JVM: " + properties.getProperty(ID));
      }
      return metrics;
    }
  }
}
