// SPDX-License-Identifier: Apache-2.0
package io.broadhead.peers;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import io.broadhead.arrow.DType;
import io.broadhead.job.bench.Heads;
import io.broadhead.job.bench.Peer;
import io.broadhead.job.bench.StepShape;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/**
 * ONNX Runtime's GroupQueryAttention over a contiguous cache. Past and present are the same memory,
 * so that nothing is copied; the new keys and values are written to its end.
 */
public final class OnnxRuntimePeer implements Peer {
  private final OrtEnvironment environment = OrtEnvironment.getEnvironment();

  @Override
  public String name() {
    return "onnxruntime-java";
  }

  @Override
  public String description() {
    return "com.microsoft.onnxruntime "
        + environment.getVersion()
        + ", GroupQueryAttention, past and present in one buffer";
  }

  @Override
  public Optional<String> refusal(StepShape shape) {
    if (shape.dtype() == DType.BFLOAT16) {
      return Optional.of("it has no bfloat16 on CPUs");
    }
    return PeerTensors.of(shape).refusal();
  }

  @Override
  public OnnxSteps open(StepShape shape, int threads, Inputs inputs) {
    OnnxSteps steps = new OnnxSteps();
    try {
      steps.open(environment, shape, threads, inputs);
      return steps;
    } catch (OrtException e) {
      steps.close();
      throw new IllegalStateException(e);
    }
  }

  static final class OnnxSteps implements Steps {
    private final List<OnnxTensor> tensors = new ArrayList<>();
    private final List<Map<String, OnnxTensor>> inputs = new ArrayList<>();
    private final List<Map<String, OnnxTensor>> outputs = new ArrayList<>();
    private OrtSession session;
    private int next;

    void open(OrtEnvironment environment, StepShape shape, int threads, Inputs source)
        throws OrtException {
      Heads heads = shape.heads();
      boolean half = shape.dtype() == DType.FLOAT16;
      try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
        options.setIntraOpNumThreads(threads);
        options.setInterOpNumThreads(1);
        byte[] model =
            OnnxModel.groupQueryAttention(
                heads.numHeads(), heads.numKvHeads(), half ? OnnxModel.FLOAT16 : OnnxModel.FLOAT32);
        session = environment.createSession(model, options);
      }
      OnnxJavaType type = half ? OnnxJavaType.FLOAT16 : OnnxJavaType.FLOAT;
      PeerTensors sizes = PeerTensors.of(shape);
      long batch = sizes.batch();
      long tokens = sizes.tokens();
      long[] query = {batch, tokens, (long) heads.numHeads() * heads.headSize()};
      long[] key = {batch, tokens, (long) heads.numKvHeads() * heads.headSize()};
      long[] past = {batch, heads.numKvHeads(), sizes.contextLength(), heads.headSize()};
      int[] lengths = new int[sizes.batch()];
      Arrays.fill(lengths, sizes.contextLength() - 1);
      OnnxTensor seqlens = keep(counts(environment, lengths, batch));
      OnnxTensor total = keep(counts(environment, new int[] {sizes.contextLength()}));
      for (int copy = 0; copy < shape.copies(); copy++) {
        List<OnnxTensor> own = new ArrayList<>();
        List<long[]> shapes = List.of(query, key, key, past, past);
        List<Long> elements =
            List.of(
                sizes.query(), sizes.newKeys(), sizes.newKeys(), sizes.context(), sizes.context());
        for (int i = 0; i < shapes.size(); i++) {
          ByteBuffer memory = sizes.filled(elements.get(i), source);
          own.add(keep(OnnxTensor.createTensor(environment, memory, shapes.get(i), type)));
        }
        Map<String, OnnxTensor> in = new HashMap<>();
        for (int i = 0; i < own.size(); i++) {
          in.put(OnnxModel.TENSOR_INPUTS.get(i), own.get(i));
        }
        in.put(OnnxModel.COUNT_INPUTS.get(0), seqlens);
        in.put(OnnxModel.COUNT_INPUTS.get(1), total);
        inputs.add(in);
        ByteBuffer result = sizes.empty(sizes.query());
        outputs.add(
            Map.of(
                OnnxModel.OUTPUTS.get(0),
                keep(OnnxTensor.createTensor(environment, result, query, type)),
                OnnxModel.OUTPUTS.get(1),
                own.get(3),
                OnnxModel.OUTPUTS.get(2),
                own.get(4)));
      }
    }

    private OnnxTensor keep(OnnxTensor tensor) {
      tensors.add(tensor);
      return tensor;
    }

    private static OnnxTensor counts(OrtEnvironment environment, int[] values, long... shape)
        throws OrtException {
      IntBuffer memory =
          ByteBuffer.allocateDirect(4 * values.length)
              .order(ByteOrder.nativeOrder())
              .asIntBuffer()
              .put(values)
              .rewind();
      return OnnxTensor.createTensor(environment, memory, shape);
    }

    @Override
    public void run() {
      attend();
    }

    /** Does the next step; answers where its output is. */
    private OnnxTensor attend() {
      int turn = next++ % inputs.size();
      try {
        session.run(inputs.get(turn), outputs.get(turn)).close();
      } catch (OrtException e) {
        throw new IllegalStateException(e);
      }
      return outputs.get(turn).get(OnnxModel.OUTPUTS.get(0));
    }

    /** The output of the next step, [batch, tokens, heads, head_size]. */
    float[] output() {
      // Of float16 as well: the buffer is widened.
      FloatBuffer values = attend().getFloatBuffer();
      float[] output = new float[values.remaining()];
      values.get(output);
      return output;
    }

    @Override
    public void close() {
      tensors.forEach(OnnxTensor::close);
      tensors.clear();
      if (session != null) {
        try {
          session.close();
        } catch (OrtException e) {
          throw new IllegalStateException(e);
        } finally {
          session = null;
        }
      }
    }
  }
}
