// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.testing;

import io.broadhead.arrow.DType;
import io.broadhead.attention.job.AttnType;
import io.broadhead.attention.job.Job;
import io.broadhead.attention.job.LayerSpec;
import io.broadhead.attention.job.RopeScaling;
import io.broadhead.attention.job.RopeSpec;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * The step format's definition in float64, slow and plain: what every step batch should give. Used
 * by one thread.
 */
public final class ReferenceAttention {
  private final Job job;
  private final DType dtype;
  private final Map<String, Map<Long, double[][]>> caches = new HashMap<>();

  /** What one batch gives, both as [row][token][...]. */
  public record Result(double[][][] output, double[][][] lse) {}

  public ReferenceAttention(Job job, DType dtype) {
    this.job = job;
    this.dtype = dtype;
  }

  /** One step of the job's layer with the name of {@code named}. */
  public Result step(LayerSpec named, List<StepRow> rows) {
    LayerSpec layer = job.layer(named.name()).orElseThrow();
    double[][][] output = new double[rows.size()][][];
    double[][][] lse = new double[rows.size()][][];
    for (int r = 0; r < rows.size(); r++) {
      row(layer, rows.get(r), output, lse, r);
    }
    return new Result(output, lse);
  }

  private void row(LayerSpec layer, StepRow row, double[][][] output, double[][][] lse, int r) {
    double[][] query = rotate(layer, row.query(), row.positions());
    double[][] key = rotate(layer, row.key(), row.positions());
    boolean cached = layer.attnType().cached();
    int keys = cached ? row.seqLen() : key.length;
    double[][] k = new double[keys][];
    double[][] v = new double[keys][];
    if (cached) {
      Map<Long, double[][]> cache =
          caches.computeIfAbsent(job.cacheOwner(layer).name(), n -> new HashMap<>());
      if (layer.kvSharingTargetLayerName() == null) {
        for (int t = 0; t < key.length; t++) {
          cache.put(
              row.slots()[t],
              new double[][] {
                stored(layer, key[t], layer.kScale()), stored(layer, row.value()[t], layer.vScale())
              });
        }
      }
      int blockSize = job.kvCache().blockSize();
      for (int j = 0; j < keys; j++) {
        long slot = (long) row.blocks()[j / blockSize] * blockSize + j % blockSize;
        double[][] entry =
            cache.getOrDefault(slot, new double[2][layer.numKvHeads() * layer.headSize()]);
        k[j] = entry[0];
        v[j] = entry[1];
      }
    } else {
      k = key;
      v = row.value();
    }
    boolean causal = layer.attnType() == AttnType.DECODER;
    int first = causal ? keys - query.length : 0;
    output[r] = new double[query.length][layer.numHeads() * layer.headSize()];
    lse[r] = new double[query.length][layer.numHeads()];
    for (int i = 0; i < query.length; i++) {
      for (int head = 0; head < layer.numHeads(); head++) {
        lse[r][i][head] = head(layer, query[i], k, v, first + i, causal, head, output[r][i]);
      }
    }
  }

  private static double head(
      LayerSpec layer,
      double[] query,
      double[][] k,
      double[][] v,
      int position,
      boolean causal,
      int head,
      double[] output) {
    int d = layer.headSize();
    int kv = head / (layer.numHeads() / layer.numKvHeads()) * d;
    double[] scores = new double[k.length];
    double max = layer.sinks().isEmpty() ? Double.NEGATIVE_INFINITY : layer.sinks().get(head);
    for (int j = 0; j < k.length; j++) {
      scores[j] = Double.NEGATIVE_INFINITY;
      long window = layer.slidingWindow();
      boolean windowed = window > 0;
      boolean visible =
          (!causal || j <= position)
              && (!windowed || (position - j < window && (causal || j - position < window)));
      if (visible) {
        double dot = 0;
        for (int e = 0; e < d; e++) {
          dot += query[head * d + e] * k[j][kv + e];
        }
        double z = dot * layer.scale();
        if (layer.logitsSoftCap() > 0) {
          z = layer.logitsSoftCap() * Math.tanh(z / layer.logitsSoftCap());
        }
        if (!layer.alibiSlopes().isEmpty()) {
          z += layer.alibiSlopes().get(head) * (j - position);
        }
        scores[j] = z;
        max = Math.max(max, z);
      }
    }
    if (max == Double.NEGATIVE_INFINITY) {
      return max;
    }
    double sum = layer.sinks().isEmpty() ? 0 : Math.exp(layer.sinks().get(head) - max);
    double[] weighted = new double[d];
    for (int j = 0; j < k.length; j++) {
      double p = Math.exp(scores[j] - max);
      sum += p;
      for (int e = 0; e < d; e++) {
        weighted[e] += p * v[j][kv + e];
      }
    }
    for (int e = 0; e < d; e++) {
      double result = weighted[e] / sum;
      output[head * d + e] =
          layer.outputScale() > 0
              ? Numbers.round(result / layer.outputScale(), DType.FLOAT8_E4M3FN)
              : result;
    }
    return Math.log(sum) + max;
  }

  private double[] stored(LayerSpec layer, double[] token, float scale) {
    DType type = layer.kvCacheDtype().dtype().orElse(dtype);
    double[] result = new double[token.length];
    for (int i = 0; i < token.length; i++) {
      result[i] = Numbers.round(token[i] / scale, type) * scale;
    }
    return result;
  }

  private double[][] rotate(LayerSpec layer, double[][] tokens, int[] positions) {
    RopeSpec rope = layer.rope();
    if (rope == null) {
      return tokens;
    }
    int half = rope.rotaryDim() / 2;
    boolean scaled = rope.scaling().type() != RopeScaling.Type.DEFAULT;
    float[] table = scaled ? rope.cosSin() : null;
    double[][] result = new double[tokens.length][];
    for (int t = 0; t < tokens.length; t++) {
      result[t] = tokens[t].clone();
      for (int start = 0; start < tokens[t].length; start += layer.headSize()) {
        for (int j = 0; j < half; j++) {
          double angle = positions[t] / Math.pow(rope.base(), 2.0 * j / rope.rotaryDim());
          int at = positions[t] * rope.rotaryDim() + j;
          double cos = scaled ? table[at] : Math.cos(angle);
          double sin = scaled ? table[at + half] : Math.sin(angle);
          int a = start + (rope.isNeox() ? j : 2 * j);
          int b = start + (rope.isNeox() ? j + half : 2 * j + 1);
          double x = tokens[t][a];
          double y = tokens[t][b];
          result[t][a] = Numbers.round(x * cos - y * sin, dtype);
          result[t][b] = Numbers.round(y * cos + x * sin, dtype);
        }
      }
    }
    return result;
  }
}
