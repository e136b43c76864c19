// SPDX-License-Identifier: Apache-2.0
package io.broadhead.peers;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.arrow.DType;
import io.broadhead.job.bench.Heads;
import io.broadhead.job.bench.Peer;
import io.broadhead.job.bench.Rows;
import io.broadhead.job.bench.StepShape;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.ServiceLoader;
import org.apache.arrow.memory.util.Float16;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** The peers attend to what they are given: what is compared does the same work. */
class PeersTest {
  private static final Heads HEADS = new Heads("4/2/32", 4, 2, 32);

  /** Hands out N(0, 1) values and remembers them. */
  private static final class Remembered implements Peer.Inputs {
    final List<float[]> filled = new ArrayList<>();
    private final Random random = new Random(5);
    private final DType dtype;

    Remembered(DType dtype) {
      this.dtype = dtype;
    }

    @Override
    public void fill(ByteBuffer target) {
      float[] values = new float[target.remaining() / dtype.byteWidth()];
      for (int i = 0; i < values.length; i++) {
        float value = (float) random.nextGaussian();
        if (dtype == DType.FLOAT16) {
          target.putShort(Float16.toFloat16(value));
          values[i] = Float16.toFloat(Float16.toFloat16(value));
        } else {
          target.putFloat(value);
          values[i] = value;
        }
      }
      filled.add(values);
    }
  }

  /** Where a query, or an output, of a token and head begins. */
  private interface Layout {
    int at(int sequence, int token, int head);
  }

  @ParameterizedTest
  @CsvSource({"FLOAT32, 3, 1, 50", "FLOAT16, 2, 1, 33", "FLOAT32, 1, 20, 20", "FLOAT16, 1, 8, 40"})
  void onnxRuntimeAttends(DType dtype, int batch, int tokens, int context) {
    StepShape shape = shape(dtype, batch, tokens, context);
    Remembered inputs = new Remembered(dtype);
    try (OnnxRuntimePeer.OnnxSteps steps = new OnnxRuntimePeer().open(shape, 2, inputs)) {
      List<float[]> given = inputs.filled;
      float[] keys = given.get(3);
      float[] values = given.get(4);
      // The step appends its own keys and values, [batch, tokens, kv_heads, head_size].
      append(keys, given.get(1), tokens, context);
      append(values, given.get(2), tokens, context);
      int width = HEADS.headSize();
      Layout layout = (b, t, h) -> ((b * tokens + t) * HEADS.numHeads() + h) * width;
      check(steps.output(), given.get(0), keys, values, shape, layout);
    }
  }

  @ParameterizedTest
  @CsvSource({"FLOAT32, 3, 1, 50", "FLOAT16, 2, 1, 33", "FLOAT32, 1, 20, 20", "FLOAT16, 1, 8, 40"})
  void pyTorchAttends(DType dtype, int batch, int tokens, int context) {
    StepShape shape = shape(dtype, batch, tokens, context);
    Remembered inputs = new Remembered(dtype);
    try (PyTorchPeer.PyTorchSteps steps = new PyTorchPeer().open(shape, 2, inputs)) {
      List<float[]> given = inputs.filled;
      int width = HEADS.headSize();
      Layout layout = (b, t, h) -> ((b * HEADS.numHeads() + h) * tokens + t) * width;
      check(steps.output(), given.get(0), given.get(1), given.get(2), shape, layout);
    }
  }

  @Test
  void peersAreFoundAndTellWhatTheyCannotDo() {
    List<Peer> peers =
        ServiceLoader.load(Peer.class).stream().map(ServiceLoader.Provider::get).toList();
    assertThat(peers.stream().map(Peer::name)).containsExactly("onnxruntime-java", "pytorch-djl");
    for (Peer peer : peers) {
      assertThat(peer.description()).matches(".* \\d+\\.\\d+.*");
      assertThat(peer.refusal(shape(DType.FLOAT16, 1, 1, 64))).isEmpty();
      assertThat(peer.refusal(shape(DType.BFLOAT16, 1, 1, 64))).isPresent();
      assertThat(peer.refusal(shape(DType.FLOAT32, 1000, 1, 32768)))
          .hasValueSatisfying(reason -> assertThat(reason).contains("2 GiB"));
    }
  }

  private static StepShape shape(DType dtype, int batch, int tokens, int context) {
    return new StepShape(
        HEADS, dtype, dtype, 16, List.of(new Rows(batch, tokens, context)), true, false);
  }

  private static void append(float[] past, float[] fresh, int tokens, int context) {
    int width = HEADS.headSize();
    int sequences = past.length / (HEADS.numKvHeads() * context * width);
    for (int b = 0; b < sequences; b++) {
      for (int t = 0; t < tokens; t++) {
        for (int h = 0; h < HEADS.numKvHeads(); h++) {
          int from = ((b * tokens + t) * HEADS.numKvHeads() + h) * width;
          int to = ((b * HEADS.numKvHeads() + h) * context + context - tokens + t) * width;
          System.arraycopy(fresh, from, past, to, width);
        }
      }
    }
  }

  /** Compares with attention in float64 over keys [batch, kv_heads, context, head_size]. */
  private static void check(
      float[] output, float[] query, float[] keys, float[] values, StepShape shape, Layout layout) {
    Rows rows = shape.rows().get(0);
    int width = HEADS.headSize();
    double worst = 0;
    for (int b = 0; b < rows.count(); b++) {
      for (int t = 0; t < rows.tokens(); t++) {
        for (int h = 0; h < HEADS.numHeads(); h++) {
          int at = layout.at(b, t, h);
          int seen = rows.context() - rows.tokens() + t + 1;
          int first = (b * HEADS.numKvHeads() + h / HEADS.groupSize()) * rows.context() * width;
          double[] expected = attend(query, at, keys, values, first, seen);
          for (int i = 0; i < width; i++) {
            worst = Math.max(worst, Math.abs(expected[i] - output[at + i]));
          }
        }
      }
    }
    assertThat(worst).isLessThan(shape.dtype() == DType.FLOAT16 ? 2e-3 : 1e-5);
  }

  private static double[] attend(
      float[] query, int at, float[] keys, float[] values, int first, int seen) {
    int width = HEADS.headSize();
    double[] sums = new double[width];
    double total = 0;
    for (int j = 0; j < seen; j++) {
      double score = 0;
      for (int i = 0; i < width; i++) {
        score += (double) query[at + i] * keys[first + j * width + i];
      }
      double weight = Math.exp(score / Math.sqrt(width));
      total += weight;
      for (int i = 0; i < width; i++) {
        sums[i] += weight * values[first + j * width + i];
      }
    }
    for (int i = 0; i < width; i++) {
      sums[i] /= total;
    }
    return sums;
  }
}
