// SPDX-License-Identifier: Apache-2.0
package io.broadhead.docs;

import io.broadhead.arrow.DType;
import io.broadhead.kernel.AttentionType;
import io.broadhead.kernel.BackendInfo;
import io.broadhead.kernel.EngineConfig;
import io.broadhead.kernel.KernelEngine;
import io.broadhead.kernel.KernelException;
import io.broadhead.kernel.KernelLayer;
import io.broadhead.kernel.LayerConfig;
import io.broadhead.kernel.RopeConfig;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

/** Asks the backends of this build what they can do, and lays the answers out in tables. */
final class SupportMatrix {
  private static final List<DType> ELEMENT_TYPES =
      List.of(DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16);
  private static final List<Integer> HEAD_SIZES =
      IntStream.rangeClosed(1, 64).map(i -> 8 * i).boxed().toList();
  private static final List<Integer> BLOCK_SIZES =
      IntStream.concat(IntStream.rangeClosed(1, 1100), IntStream.of(4096)).boxed().toList();
  private static final List<Integer> SOME_BLOCK_SIZES = List.of(16, 32, 48, 528, 544);
  private static final int HEADS = 4;
  private static final float[] SLOPES = {0.5f, 0.25f, -0.5f, -0.25f};

  private static final List<Feature> FEATURES =
      List.of(
          new Feature("plain", layer -> {}),
          new Feature("`sliding_window`", layer -> layer.slidingWindow(1)),
          new Feature("`logits_soft_cap`", layer -> layer.logitsSoftCap(30)),
          new Feature("`alibi_slopes`, of either sign", layer -> layer.alibiSlopes(SLOPES)),
          new Feature("`sinks`", layer -> layer.sinks(SLOPES)),
          new Feature(
              "`alibi_slopes`, `sinks`, `sliding_window` and `logits_soft_cap` together",
              layer -> layer.alibiSlopes(SLOPES).sinks(SLOPES).slidingWindow(9).logitsSoftCap(30)),
          new Feature("`rope`, NeoX pairs", layer -> layer.rope(rope(32, true))),
          new Feature("`rope`, GPT-J pairs", layer -> layer.rope(rope(32, false))),
          new Feature("`rope` over part of a head", layer -> layer.rope(rope(6, true))),
          new Feature("`output_scale`", layer -> layer.outputScale(0.5f)),
          new Feature("`return_lse`", layer -> layer.returnLse(true)),
          new Feature("`kv_sharing_target_layer_name`", layer -> layer.readOnlyCache(true), true),
          new Feature(
              "`k_scale`, `v_scale` (fp8 caches)",
              layer -> layer.kScale(0.5f).vScale(2),
              List.of(DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2)));

  /**
   * @param cachedOnly whether the feature means nothing without a cache
   * @param cacheTypes cache element types that it belongs to
   */
  private record Feature(
      String name, Consumer<LayerConfig.Builder> set, boolean cachedOnly, List<DType> cacheTypes) {
    Feature(String name, Consumer<LayerConfig.Builder> set) {
      this(name, set, false, List.of(DType.values()));
    }

    Feature(String name, Consumer<LayerConfig.Builder> set, boolean cachedOnly) {
      this(name, set, cachedOnly, List.of(DType.values()));
    }

    Feature(String name, Consumer<LayerConfig.Builder> set, List<DType> cacheTypes) {
      this(name, set, true, cacheTypes);
    }
  }

  private final KernelEngine engine;

  private SupportMatrix(KernelEngine engine) {
    this.engine = engine;
  }

  /** The tables of every backend that can be used here. */
  static String page() {
    StringBuilder page = new StringBuilder();
    for (BackendInfo backend : KernelEngine.backends()) {
      if (backend.usable()) {
        try (KernelEngine engine = KernelEngine.open(new EngineConfig(backend.name(), 1, 0))) {
          page.append("\n## Backend `").append(backend.name()).append("`\n");
          new SupportMatrix(engine).describe(page);
        }
      }
    }
    return page.toString();
  }

  private static RopeConfig rope(int rotaryDim, boolean neox) {
    return new RopeConfig(rotaryDim, 2, neox, new float[2 * rotaryDim]);
  }

  private static LayerConfig.Builder layer(AttentionType type, DType dtype, int headSize) {
    return LayerConfig.builder("layer", HEADS, 2, headSize).attentionType(type).dtype(dtype);
  }

  private static boolean cached(AttentionType type) {
    return type == AttentionType.DECODER || type == AttentionType.ENCODER_DECODER;
  }

  private Optional<KernelException> ask(LayerConfig.Builder layer, DType cache, int blockSize) {
    return KernelLayer.unsupported(engine, layer.build(), cache, blockSize);
  }

  private void describe(StringBuilder page) {
    List<Integer> headSizes =
        HEAD_SIZES.stream()
            .filter(
                size ->
                    ask(layer(AttentionType.DECODER, DType.FLOAT32, size), DType.FLOAT32, 16)
                        .isEmpty())
            .toList();
    page.append("\n**Head sizes**: ").append(list(headSizes, Object::toString)).append(".\n\n");
    page.append("**Block sizes**: ").append(blockSizes()).append(".\n\n");
    page.append(
        "**Query, key and value types** against cache types (`kv_cache_dtype`), for all head sizes"
            + " and the block sizes "
            + list(SOME_BLOCK_SIZES, Object::toString)
            + ":\n\n");
    page.append(ReferencePages.row(cells("T", Arrays.asList(DType.values()), DType::label)));
    page.append("|---".repeat(DType.values().length + 1)).append("|\n");
    for (DType dtype : ELEMENT_TYPES) {
      page.append(
          ReferencePages.row(
              cells(
                  dtype.label(),
                  Arrays.asList(DType.values()),
                  cache -> decoder(dtype, cache, headSizes))));
    }
    page.append(
        "\n**Features** against layer types (`attn_type`), for all types, head sizes and the block"
            + " sizes above:\n\n");
    List<AttentionType> types = Arrays.asList(AttentionType.values());
    page.append(
        ReferencePages.row(
            cells("feature", types, type -> "`" + type.name().toLowerCase(Locale.ROOT) + "`")));
    page.append("|---".repeat(types.size() + 1)).append("|\n");
    for (Feature feature : FEATURES) {
      page.append(
          ReferencePages.row(cells(feature.name, types, type -> cell(feature, type, headSizes))));
    }
    page.append("\n**Refusals, with the message that a user reads**:\n\n");
    LayerConfig.Builder good = layer(AttentionType.DECODER, DType.FLOAT16, 64);
    refusal(page, layer(AttentionType.DECODER, DType.FLOAT16, 72), DType.FLOAT16, 16);
    refusal(page, layer(AttentionType.DECODER, DType.FLOAT8_E4M3FN, 64), DType.FLOAT16, 16);
    refusal(page, good, DType.FLOAT16, 24);
    refusal(page, good.kScale(2), DType.FLOAT16, 16);
    refusal(page, layer(AttentionType.ENCODER, DType.FLOAT16, 64), DType.FLOAT8_E4M3FN, 16);
    refusal(
        page,
        layer(AttentionType.DECODER, DType.FLOAT16, 64).rope(rope(66, true)),
        DType.FLOAT16,
        16);
  }

  private void refusal(StringBuilder page, LayerConfig.Builder layer, DType cache, int blockSize) {
    String reason =
        ask(layer, cache, blockSize)
            .map(Throwable::getMessage)
            .orElseThrow(() -> new IllegalStateException("nothing is wrong with this layer"));
    page.append("- ").append(reason).append("\n");
  }

  private String blockSizes() {
    List<Integer> sizes =
        BLOCK_SIZES.stream()
            .filter(
                size ->
                    ask(layer(AttentionType.DECODER, DType.FLOAT16, 64), DType.FLOAT16, size)
                        .isEmpty())
            .toList();
    boolean multiples = sizes.equals(BLOCK_SIZES.stream().filter(size -> size % 16 == 0).toList());
    return multiples ? "any multiple of 16 (checked: 1 to 1100, 4096)" : sizes.toString();
  }

  private String decoder(DType dtype, DType cache, List<Integer> headSizes) {
    return answer(
        AttentionType.DECODER, FEATURES.get(0), List.of(dtype), List.of(cache), headSizes);
  }

  private String cell(Feature feature, AttentionType type, List<Integer> headSizes) {
    if (feature.cachedOnly && !cached(type)) {
      return "no cache";
    }
    return answer(type, feature, ELEMENT_TYPES, feature.cacheTypes, headSizes);
  }

  /** Yes, or what it is not supported for. */
  private String answer(
      AttentionType type,
      Feature feature,
      List<DType> dtypes,
      List<DType> caches,
      List<Integer> headSizes) {
    List<String> refused = new ArrayList<>();
    int asked = 0;
    for (DType dtype : dtypes) {
      for (DType cache : cached(type) ? caches : Arrays.asList((DType) null)) {
        for (int headSize : headSizes) {
          for (int blockSize : cached(type) ? SOME_BLOCK_SIZES : List.of(0)) {
            LayerConfig.Builder layer = layer(type, dtype, headSize);
            feature.set.accept(layer);
            asked++;
            ask(layer, cache, blockSize).ifPresent(e -> refused.add(e.getMessage()));
          }
        }
      }
    }
    if (refused.isEmpty()) {
      return "yes";
    }
    String reasons = refused.stream().distinct().limit(3).collect(Collectors.joining("; "));
    return (refused.size() == asked ? "no: " : "not all: ") + reasons;
  }

  private static <T> Object[] cells(String first, List<T> columns, Function<T, String> cell) {
    List<Object> cells = new ArrayList<>(List.of(first));
    columns.stream().map(cell).forEach(cells::add);
    return cells.toArray();
  }

  private static <T> String list(List<T> values, Function<T, String> text) {
    return values.stream().map(text).collect(Collectors.joining(", "));
  }
}
