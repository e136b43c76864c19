// SPDX-License-Identifier: Apache-2.0
package io.broadhead.peers;

import ai.djl.Model;
import ai.djl.engine.Engine;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import ai.djl.nn.Block;
import ai.djl.pytorch.jni.JniUtils;
import ai.djl.training.ParameterStore;
import io.broadhead.arrow.DType;
import io.broadhead.job.bench.Heads;
import io.broadhead.job.bench.Peer;
import io.broadhead.job.bench.StepShape;
import java.io.IOException;
import java.io.InputStream;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;

/**
 * PyTorch's scaled_dot_product_attention by way of DJL, over contiguous keys and values. In a
 * decode step the query heads of a KV head are its query tokens, which is several times faster than
 * {@code enable_gqa}.
 */
public final class PyTorchPeer implements Peer {
  private static final String ENGINE = "PyTorch";

  /** Made by sdpa.py, beside it. */
  private static final String MODULE = "sdpa.pt";

  /** Loads PyTorch. */
  private final Engine engine = Engine.getEngine(ENGINE);

  @Override
  public String name() {
    return "pytorch-djl";
  }

  @Override
  public String description() {
    return "ai.djl.pytorch "
        + Engine.getDjlVersion()
        + ", PyTorch "
        + engine.getVersion()
        + ", scaled_dot_product_attention";
  }

  @Override
  public Optional<String> refusal(StepShape shape) {
    if (shape.dtype() == DType.BFLOAT16) {
      return Optional.of("DJL makes no bfloat16 tensors");
    }
    return PeerTensors.of(shape).refusal();
  }

  @Override
  public PyTorchSteps open(StepShape shape, int threads, Inputs inputs) {
    JniUtils.setNumThreads(threads);
    return new PyTorchSteps(shape, inputs);
  }

  static final class PyTorchSteps implements Steps {
    private final NDManager manager = NDManager.newBaseManager(ENGINE);
    private final Model model = Model.newInstance("sdpa", ENGINE);
    private final ParameterStore parameters = new ParameterStore(manager, false);
    private final Block attention;
    private final List<NDList> inputs = new ArrayList<>();
    private int next;

    PyTorchSteps(StepShape shape, Inputs source) {
      try (InputStream module = PyTorchPeer.class.getResourceAsStream(MODULE)) {
        model.load(module);
      } catch (IOException | ai.djl.MalformedModelException e) {
        throw new IllegalStateException(e);
      }
      attention = model.getBlock();
      Heads heads = shape.heads();
      PeerTensors sizes = PeerTensors.of(shape);
      boolean decodes = sizes.tokens() == 1;
      Shape query =
          new Shape(
              sizes.batch(),
              decodes ? heads.numKvHeads() : heads.numHeads(),
              decodes ? heads.groupSize() : sizes.tokens(),
              heads.headSize());
      Shape context =
          new Shape(sizes.batch(), heads.numKvHeads(), sizes.contextLength(), heads.headSize());
      DataType type = shape.dtype() == DType.FLOAT16 ? DataType.FLOAT16 : DataType.FLOAT32;
      NDArray mask = decodes || sizes.tokens() == sizes.contextLength() ? null : mask(sizes, type);
      for (int copy = 0; copy < shape.copies(); copy++) {
        NDList own =
            new NDList(
                manager.create(sizes.filled(sizes.query(), source), query, type),
                manager.create(sizes.filled(sizes.context(), source), context, type),
                manager.create(sizes.filled(sizes.context(), source), context, type));
        if (mask != null) {
          own.add(mask);
        }
        inputs.add(own);
      }
    }

    /** 0 where a token of a chunk sees a key, -inf where it does not. */
    private NDArray mask(PeerTensors sizes, DataType type) {
      int old = sizes.contextLength() - sizes.tokens();
      float[] values = new float[sizes.tokens() * sizes.contextLength()];
      for (int token = 0; token < sizes.tokens(); token++) {
        for (int key = old + token + 1; key < sizes.contextLength(); key++) {
          values[token * sizes.contextLength() + key] = Float.NEGATIVE_INFINITY;
        }
      }
      return manager
          .create(values, new Shape(1, 1, sizes.tokens(), sizes.contextLength()))
          .toType(type, false);
    }

    @Override
    public void run() {
      attend().close();
    }

    private NDList attend() {
      return attention.forward(parameters, inputs.get(next++ % inputs.size()), false);
    }

    /** The output of the next step, [batch, heads, tokens, head_size]. */
    float[] output() {
      try (NDList output = attend()) {
        return output.get(0).toType(DataType.FLOAT32, false).toFloatArray();
      }
    }

    @Override
    public void close() {
      model.close();
      manager.close();
    }
  }
}
