// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

import io.broadhead.arrow.DType;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.LayerSpec;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.IntStream;

/**
 * A scheduler in small: hands out shuffled blocks to sequences and makes their next steps with N(0,
 * 1) tensors. Used by one thread.
 */
public final class Scenario {
  private final Job job;
  private final DType dtype;
  private final Random random;
  private final List<Integer> freeBlocks;
  private final Map<Object, Sequence> sequences = new LinkedHashMap<>();

  private static final class Sequence {
    final List<Integer> blocks = new ArrayList<>();
    final Map<String, Integer> cached = new LinkedHashMap<>();
  }

  public Scenario(Job job, DType dtype, long seed) {
    this.job = job;
    this.dtype = dtype;
    this.random = new Random(seed);
    this.freeBlocks =
        new ArrayList<>(IntStream.range(0, (int) job.kvCache().numBlocks()).boxed().toList());
    Collections.shuffle(freeBlocks, random);
  }

  /** The next {@code tokens} tokens of a sequence in {@code layer}. */
  public StepRow next(Object sequenceId, LayerSpec layer, int tokens) {
    return next(sequenceId, layer, tokens, tokens);
  }

  /** As above, with as many queries and keys as given. */
  public StepRow next(Object sequenceId, LayerSpec layer, int queries, int keys) {
    double[][] query = normal(queries, layer.numHeads() * layer.headSize());
    double[][] key = normal(keys, layer.numKvHeads() * layer.headSize());
    double[][] value = normal(keys, layer.numKvHeads() * layer.headSize());
    if (!layer.attnType().cached()) {
      int[] positions = IntStream.range(0, queries).toArray();
      return new StepRow(
          sequenceId, layer.name(), query, key, value, keys, new long[0], new int[0], positions);
    }
    Sequence sequence = sequences.computeIfAbsent(sequenceId, id -> new Sequence());
    int cached = sequence.cached.getOrDefault(layer.name(), 0);
    int seqLen = cached + keys;
    int blockSize = job.kvCache().blockSize();
    while (sequence.blocks.size() * blockSize < seqLen) {
      sequence.blocks.add(freeBlocks.remove(freeBlocks.size() - 1));
    }
    sequence.cached.put(layer.name(), seqLen);
    long[] slots =
        IntStream.range(cached, seqLen)
            .mapToLong(p -> (long) sequence.blocks.get(p / blockSize) * blockSize + p % blockSize)
            .toArray();
    int[] table = sequence.blocks.stream().mapToInt(Integer::intValue).toArray();
    int first = layer.attnType() == AttnType.DECODER ? seqLen - queries : 0;
    int[] positions = IntStream.range(first, first + queries).toArray();
    return new StepRow(
        sequenceId, layer.name(), query, key, value, seqLen, slots, table, positions);
  }

  private double[][] normal(int rows, int width) {
    double[][] values = new double[rows][width];
    for (double[] row : values) {
      for (int i = 0; i < width; i++) {
        row[i] = Numbers.round(random.nextGaussian(), dtype);
      }
    }
    return values;
  }
}
