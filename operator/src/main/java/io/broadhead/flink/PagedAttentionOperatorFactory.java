// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.arrow.ArrowBatch;
import io.broadhead.attention.job.Job;
import org.apache.flink.configuration.ReadableConfig;
import org.apache.flink.streaming.api.operators.AbstractStreamOperatorFactory;
import org.apache.flink.streaming.api.operators.OneInputStreamOperatorFactory;
import org.apache.flink.streaming.api.operators.OperatorAttributes;
import org.apache.flink.streaming.api.operators.OperatorAttributesBuilder;
import org.apache.flink.streaming.api.operators.StreamOperator;
import org.apache.flink.streaming.api.operators.StreamOperatorParameters;

/**
 * Makes {@link PagedAttentionOperator}s. Holds the job and the options, checked at submission;
 * {@link PagedAttentionStream} puts it into a job graph.
 */
final class PagedAttentionOperatorFactory extends AbstractStreamOperatorFactory<ArrowBatch>
    implements OneInputStreamOperatorFactory<ArrowBatch, ArrowBatch> {
  private static final long serialVersionUID = 1;

  private final Job job;
  private final OperatorSettings settings;

  /**
   * @param options {@link PagedAttentionOptions}
   * @param shards that the stream is divided into, and keyed by
   * @throws IllegalArgumentException naming a key whose value is not accepted
   */
  PagedAttentionOperatorFactory(Job job, ReadableConfig options, int shards) {
    this.job = job;
    this.settings = OperatorSettings.of(options, shards);
  }

  @Override
  public <T extends StreamOperator<ArrowBatch>> T createStreamOperator(
      StreamOperatorParameters<ArrowBatch> parameters) {
    @SuppressWarnings("unchecked")
    T operator = (T) new PagedAttentionOperator(parameters, job, settings);
    return operator;
  }

  /** Input need not be sorted by key where it is bounded: the order of steps is what counts. */
  @Override
  public OperatorAttributes getOperatorAttributes() {
    return new OperatorAttributesBuilder().setInternalSorterSupported(true).build();
  }

  @Override
  @SuppressWarnings("rawtypes")
  public Class<? extends StreamOperator> getStreamOperatorClass(ClassLoader classLoader) {
    return PagedAttentionOperator.class;
  }
}
