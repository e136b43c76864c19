// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

/**
 * One row of a step batch. Tensors are [tokens][heads * head size], already rounded to the batch's
 * element type.
 *
 * @param sequenceId a Long or a String
 */
public record StepRow(
    Object sequenceId,
    String layer,
    double[][] query,
    double[][] key,
    double[][] value,
    int seqLen,
    long[] slots,
    int[] blocks,
    int[] positions) {

  public StepRow withSequenceId(Object value) {
    return new StepRow(value, layer, query, key, this.value, seqLen, slots, blocks, positions);
  }

  public StepRow withSlots(long... value) {
    return new StepRow(sequenceId, layer, query, key, this.value, seqLen, value, blocks, positions);
  }

  public StepRow withBlocks(int... value) {
    return new StepRow(sequenceId, layer, query, key, this.value, seqLen, slots, value, positions);
  }

  public StepRow withSeqLen(int value) {
    return new StepRow(sequenceId, layer, query, key, this.value, value, slots, blocks, positions);
  }

  public StepRow withValue(double[][] value) {
    return new StepRow(sequenceId, layer, query, key, value, seqLen, slots, blocks, positions);
  }

  public StepRow withKeys(double[][] key, double[][] value) {
    return new StepRow(sequenceId, layer, query, key, value, seqLen, slots, blocks, positions);
  }

  public StepRow withoutKeys() {
    double[][] none = new double[0][];
    return withKeys(none, none).withSlots();
  }

  public StepRow withPositions(int... value) {
    return new StepRow(sequenceId, layer, query, key, this.value, seqLen, slots, blocks, value);
  }

  public StepRow withLayer(String value) {
    return new StepRow(sequenceId, value, query, key, this.value, seqLen, slots, blocks, positions);
  }
}
