// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.ObjectInputStream;
import java.io.ObjectOutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

class JobFileTest {
  private static final String EVERY_KEY =
      """
      kv_cache: {block_size: 544, num_blocks: 4096, dtype: bfloat16}
      layers:
        - name: a
          num_heads: 4
          num_kv_heads: 2
          head_size: 80
          scale: 0.125
          attn_type: decoder
          sliding_window: 4096
          logits_soft_cap: 50.0
          alibi_slopes: [0.5, 0.25, -1, 1e-3]
          sinks: [1.0, -0.5, 0, 2]
          kv_cache_dtype: fp8
          k_scale: 0.5
          v_scale: 2
          output_scale: 0.02
          rope: {rotary_dim: 64, max_position: 8192, base: 500000, is_neox: false}
          return_lse: true
        - name: b
          num_heads: 8
          num_kv_heads: 2
          head_size: 80
          kv_sharing_target_layer_name: a
      """;

  @Test
  void readsEveryKey() {
    Job job = JobFile.parse(EVERY_KEY, "job.yaml");

    assertThat(job.kvCache()).isEqualTo(new KvCacheSpec(544, 4096, KvCacheDtype.BFLOAT16));
    assertThat(job.layers().get(0))
        .isEqualTo(
            LayerSpec.builder("a", 4, 80)
                .numKvHeads(2)
                .scale(0.125f)
                .attnType(AttnType.DECODER)
                .slidingWindow(4096)
                .logitsSoftCap(50)
                .alibiSlopes(List.of(0.5f, 0.25f, -1f, 1e-3f))
                .sinks(List.of(1f, -0.5f, 0f, 2f))
                .kvCacheDtype(KvCacheDtype.FP8_E4M3)
                .kScale(0.5f)
                .vScale(2)
                .outputScale(0.02f)
                .rope(new RopeSpec(64, 8192, 500000, false))
                .returnLse(true)
                .build());
  }

  @Test
  void sharedCacheHasTheDtypeAndScalesOfItsOwner() {
    Job job = JobFile.parse(EVERY_KEY, "job.yaml");
    LayerSpec b = job.layer("b").orElseThrow();

    assertThat(b.kvCacheDtype()).isEqualTo(KvCacheDtype.FP8_E4M3);
    assertThat(b.kScale()).isEqualTo(0.5f);
    assertThat(b.vScale()).isEqualTo(2f);
    assertThat(job.cacheOwner(b).name()).isEqualTo("a");
    assertThat(job.cacheBytes()).hasValue(2L * 4096 * 544 * 2 * 80);
  }

  @Test
  void fillsInDefaults() {
    Job job =
        JobFile.parse(
            """
            kv_cache: {num_blocks: 8}
            layers:
              - {name: a, num_heads: 4, head_size: 128, logits_soft_cap: 0, sliding_window: null}
            """,
            "job.yaml");

    assertThat(job.kvCache()).isEqualTo(new KvCacheSpec(16, 8, KvCacheDtype.AUTO));
    LayerSpec layer = job.layers().get(0);
    assertThat(layer.numKvHeads()).isEqualTo(4);
    assertThat(layer.scale()).isEqualTo((float) Math.pow(128, -0.5));
    assertThat(layer.attnType()).isEqualTo(AttnType.DECODER);
    assertThat(layer.slidingWindow()).isZero();
    assertThat(layer.logitsSoftCap()).isZero();
    assertThat(layer.kvCacheDtype()).isEqualTo(KvCacheDtype.AUTO);
    assertThat(layer.rope()).isNull();
    assertThat(layer.returnLse()).isFalse();
    assertThat(job.cacheBytes()).isEmpty();
  }

  @Test
  void aFractionOfAGpusFreeMemoryIsSharedByThePoolsOfAllLayers() {
    Job job =
        JobFile.parse(
            """
            kv_cache: {block_size: 32, memory_fraction: 0.5, dtype: float16}
            layers:
              - {name: a, num_heads: 4, num_kv_heads: 2, head_size: 64}
              - {name: b, num_heads: 4, head_size: 32, kv_cache_dtype: fp8}
              - {name: c, num_heads: 4, head_size: 32, kv_sharing_target_layer_name: b}
              - {name: d, num_heads: 4, head_size: 32, attn_type: encoder}
            """,
            "job.yaml");
    long blockOfA = 2L * 32 * 2 * 64 * 2;
    long blockOfB = 2L * 32 * 4 * 32;

    assertThat(job.cacheBytes()).isEmpty();
    Job sized = job.sizedFor(2 * (10 * (blockOfA + blockOfB) + 100));
    assertThat(sized.kvCache()).isEqualTo(new KvCacheSpec(32, 10, KvCacheDtype.FLOAT16));
    assertThat(sized.layers()).isEqualTo(job.layers());
    assertThat(sized.cacheBytes()).hasValue(10 * (blockOfA + blockOfB));
    assertThatThrownBy(() -> job.sizedFor(2 * (blockOfA + blockOfB) - 2))
        .isInstanceOf(InvalidJobException.class)
        .hasMessageContaining("kv_cache.memory_fraction")
        .hasMessageContaining((blockOfA + blockOfB) + " bytes");
    assertThatThrownBy(() -> job.sizedFor(0))
        .isInstanceOf(InvalidJobException.class)
        .hasMessageContaining("num_blocks instead");
  }

  @Test
  void encoderLayersNeedNoCacheAndIgnoreItsDtype() {
    Job job =
        JobFile.parse(
            """
            kv_cache: {dtype: fp8}
            layers: [{name: e, num_heads: 4, head_size: 32, attn_type: encoder_only}]
            """,
            "job.yaml");

    assertThat(job.layers().get(0).kvCacheDtype()).isEqualTo(KvCacheDtype.AUTO);
    assertThat(job.cacheBytes()).hasValue(0);
  }

  @Test
  void autoOverridesTheDefaultDtype() {
    Job job =
        JobFile.parse(
            """
            kv_cache: {num_blocks: 1, dtype: fp8}
            layers: [{name: a, num_heads: 1, head_size: 32, kv_cache_dtype: auto}]
            """,
            "job.yaml");

    assertThat(job.layers().get(0).kvCacheDtype()).isEqualTo(KvCacheDtype.AUTO);
  }

  @ParameterizedTest
  @ValueSource(strings = {"auto", "float16", "bfloat16", "float32", "fp8", "fp8_e4m3", "fp8_e5m2"})
  void acceptsEveryCacheDtype(String dtype) {
    Job job = JobFile.parse(layer("kv_cache_dtype: " + dtype), "job.yaml");

    assertThat(job.layers().get(0).kvCacheDtype().label())
        .isEqualTo(dtype.equals("fp8") ? "fp8_e4m3" : dtype);
  }

  @Test
  void sharingMayBeChained() {
    Job job =
        JobFile.parse(
            """
            kv_cache: {num_blocks: 1}
            layers:
              - {name: a, num_heads: 1, head_size: 32}
              - {name: b, num_heads: 1, head_size: 32, kv_sharing_target_layer_name: a}
              - {name: c, num_heads: 1, head_size: 32, kv_sharing_target_layer_name: b}
            """,
            "job.yaml");

    assertThat(job.cacheOwner(job.layers().get(2)).name()).isEqualTo("a");
  }

  @Test
  void loadsAFileAndNamesIt(@TempDir Path folder) throws Exception {
    Path file = folder.resolve("my.yaml");
    Files.writeString(file, EVERY_KEY);
    assertThat(JobFile.load(file)).isEqualTo(JobFile.parse(EVERY_KEY, "x"));

    Files.writeString(file, EVERY_KEY.replace("head_size: 80", "head_size: 81"));
    assertThatThrownBy(() -> JobFile.load(file)).hasMessageStartingWith(file + ":6:16: ");

    Files.write(file, EVERY_KEY.getBytes(StandardCharsets.UTF_16));
    assertThatThrownBy(() -> JobFile.load(file))
        .isInstanceOf(InvalidJobException.class)
        .hasMessage(file + ": expected text in UTF-8, got other bytes");
  }

  @Test
  void travelsThroughJavaSerialization() throws Exception {
    Job job = JobFile.parse(EVERY_KEY, "job.yaml");
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    try (ObjectOutputStream out = new ObjectOutputStream(bytes)) {
      out.writeObject(job);
    }
    try (ObjectInputStream in =
        new ObjectInputStream(new ByteArrayInputStream(bytes.toByteArray()))) {
      assertThat(in.readObject()).isEqualTo(job);
    }
  }

  @Test
  void problemsOfJobsBuiltInCodeNameTheKey() {
    assertThatThrownBy(() -> LayerSpec.builder("a", 3, 64).numKvHeads(2).build())
        .isInstanceOf(InvalidJobException.class)
        .hasMessage("num_kv_heads: expected a number that divides num_heads 3, got 2");
  }

  /** A one-layer job; {@code key} is line 6. */
  private static String layer(String key) {
    return """
    kv_cache: {block_size: 16, num_blocks: 8}
    layers:
      - name: a
        num_heads: 4
        head_size: 64
        %s
    """
        .formatted(key);
  }

  private static Arguments badLayer(String key, String... parts) {
    return Arguments.of(layer(key), parts);
  }

  private static Arguments badFile(String text, String... parts) {
    return Arguments.of(text, parts);
  }

  static Stream<Arguments> problems() {
    return Stream.of(
        badLayer(
            "num_kvheads: 2",
            "job.yaml:6:5: layers[0].num_kvheads: unknown key 'num_kvheads'",
            "did you mean 'num_kv_heads'?"),
        badLayer("numKvHeads: 2", "did you mean 'num_kv_heads'?"),
        badLayer("block_size: 16", "unknown key 'block_size'", "belongs under kv_cache"),
        badLayer("flavour: mint", "unknown key 'flavour'; expected one of name, num_heads,"),
        badLayer("num_kv_heads: 3", "job.yaml:6:19: layers[0].num_kv_heads: ", "4", "got 3"),
        badLayer("num_kv_heads: 0", "layers[0].num_kv_heads", "got 0"),
        badLayer("num_kv_heads: two", "expected integer", "got 'two'"),
        badLayer("num_kv_heads: 2.5", "expected integer", "got 2.5"),
        badLayer("num_kv_heads: 99999999999999999999", "got 99999999999999999999"),
        badLayer("sliding_window: 0xffffffffffffffffffff", "got 0xffffffffffffffffffff"),
        badLayer("logits_soft_cap: 0o7777777777777777777777777777777777777777777777777777", "got"),
        badFile(layer("").replace("num_heads: 4", "num_heads: 2147483647"), "got 2147483647"),
        badLayer("num_kv_heads: [2]", "expected integer", "got a list"),
        badLayer("num_heads: 2", "job.yaml:6:5: layers[0].num_heads: given twice"),
        badLayer("scale: fast", "layers[0].scale: expected finite number, got 'fast'"),
        badLayer("scale: .inf", "layers[0].scale: expected a finite number, got Infinity"),
        badLayer("scale: 1e300", "layers[0].scale: expected a finite number, got Infinity"),
        badLayer("attn_type: decode", "expected decoder, encoder, encoder_only or", "got 'decode'"),
        badLayer("sliding_window: 0", "layers[0].sliding_window: expected integer, at least 1"),
        badLayer("sliding_window: -5", "got -5"),
        badLayer("logits_soft_cap: -1", "layers[0].logits_soft_cap", "got -1.0"),
        badLayer("logits_soft_cap: .nan", "layers[0].logits_soft_cap", "got NaN"),
        badLayer(
            "alibi_slopes: [1, 2, 3]",
            "layers[0].alibi_slopes: expected num_heads = 4 numbers, got 3 numbers"),
        badLayer("alibi_slopes: []", "expected num_heads = 4 numbers, got an empty list"),
        badLayer("alibi_slopes: 1", "expected list of num_heads finite numbers, got 1"),
        badLayer(
            "alibi_slopes: [1, x, 3, 4]",
            "job.yaml:6:23: layers[0].alibi_slopes[1]: expected a finite number, got 'x'"),
        badLayer("sinks: [1, 2, 3, .inf]", "job.yaml:6:22: layers[0].sinks[3]", "got Infinity"),
        badLayer("sinks: [1, 2]", "layers[0].sinks: expected num_heads = 4 numbers"),
        badLayer("kv_cache_dtype: int8", "layers[0].kv_cache_dtype", "fp8_e5m2", "got 'int8'"),
        badLayer("kv_cache_dtype: 8", "got 8 (quote it to make it text)"),
        badLayer("k_scale: 2", "layers[0].k_scale", "kv_cache_dtype is auto", "got 2.0"),
        badLayer("k_scale: 0", "layers[0].k_scale: expected number above 0, got 0"),
        badLayer("v_scale: -1", "layers[0].v_scale: expected number above 0, got -1"),
        badLayer("output_scale: 0", "layers[0].output_scale: expected number above 0, got 0"),
        badLayer("return_lse: yes", "layers[0].return_lse: expected true or false, got 'yes'"),
        badLayer("kv_sharing_target_layer_name: a", "expected another layer, got the layer itself"),
        badLayer(
            "kv_sharing_target_layer_name: z", "an earlier layer, and this is the first, got 'z'"),
        badLayer("rope: true", "layers[0].rope: expected a mapping with the keys rotary_dim"),
        badLayer("rope: {max_position: 9}", "layers[0].rope.rotary_dim: missing"),
        badLayer("rope: {rotary_dim: 8}", "layers[0].rope.max_position: missing"),
        badLayer(
            "rope: {rotary_dim: 7, max_position: 9}",
            "job.yaml:6:24: layers[0].rope.rotary_dim: expected an even number",
            "got 7"),
        badLayer(
            "rope: {rotary_dim: 66, max_position: 9}",
            "job.yaml:6:24: layers[0].rope.rotary_dim",
            "head_size 64",
            "got 66"),
        badLayer("rope: {rotary_dim: 8, max_position: 0}", "layers[0].rope.max_position", "got 0"),
        badLayer("rope: {rotary_dim: 8, max_position: 9, base: 0}", "rope.base", "above 0"),
        badLayer("rope: {rotary_dim: 8, max_position: 9, theta: 5}", "unknown key 'theta'"),
        badLayer(
            "attn_type: encoder\n    kv_cache_dtype: fp8",
            "job.yaml:7:21: layers[0].kv_cache_dtype",
            "an encoder layer has no KV cache",
            "got fp8_e4m3"),
        badLayer(
            "attn_type: encoder_only\n    k_scale: 2",
            "layers[0].k_scale",
            "kv_cache_dtype is auto"),
        badLayer(
            "attn_type: encoder\n    kv_sharing_target_layer_name: z",
            "layers[0].kv_sharing_target_layer_name",
            "an encoder layer has no KV cache"),
        badFile("", "job.yaml: expected a mapping with the keys kv_cache, layers, got an empty"),
        badFile("# only a comment\n", "got an empty file"),
        badFile("- a\n", "job.yaml:1:1: expected a mapping with the keys", "got a list"),
        badFile("layers: []\n", "layers: expected at least one layer, got an empty list"),
        badFile("kv_cache: {num_blocks: 1}\n", "layers: missing"),
        badFile("layers: {a: b}\n", "layers: expected list of mappings, got a mapping"),
        badFile("layers: [a]\n", "job.yaml:1:10: layers[0]: expected a mapping", "got 'a'"),
        badFile("layers: [\n", "job.yaml:2:1: "),
        badFile("layers: [{name: 'x}]\n", "job.yaml:"),
        badFile("a: 1\n---\nb: 2\n", "job.yaml:3:1: expected one YAML document, got a second one"),
        badFile(
            "kv_cahce: {}\n", "job.yaml:1:1: kv_cahce: unknown key", "did you mean 'kv_cache'?"),
        badFile(
            "layers: [{num_heads: 1, head_size: 64}]\n", "job.yaml:1:10: layers[0].name: missing"),
        badFile("layers: [{name: a, head_size: 64}]\n", "layers[0].num_heads: missing"),
        badFile("layers: [{name: a, num_heads: 1}]\n", "layers[0].head_size: missing", "32, 64"),
        badFile("layers: [{name: 5, num_heads: 1}]\n", "layers[0].name", "got 5 (quote it"),
        badFile(
            "layers: [{name: '', num_heads: 1, head_size: 32}]\n",
            "layers[0].name",
            "not empty, got ''"),
        badFile(
            "layers: [{name: a, num_heads: 1, head_size: 100}]\n",
            "job.yaml:1:45: layers[0].head_size: expected one of 32, 64, 80, 96, 128",
            "got 100"),
        badFile(
            "layers: [{name: a, num_heads: 1, head_size: 32}]\n",
            "kv_cache.num_blocks: missing",
            "layer 'a' keeps a KV cache"),
        badFile(
            "kv_cache: {block_size: 24}\nlayers: []\n", "job.yaml:1:24: kv_cache.block_size", "24"),
        badFile("kv_cache: {num_blocks: 0}\nlayers: []\n", "kv_cache.num_blocks", "got 0"),
        badFile(
            "kv_cache: {memory_fraction: 1.5}\nlayers: []\n",
            "job.yaml:1:29: kv_cache.memory_fraction: expected number above 0",
            "got 1.5"),
        badFile(
            "kv_cache: {memory_fraction: 0}\nlayers: []\n", "kv_cache.memory_fraction", "got 0"),
        badFile(
            "kv_cache: {num_blocks: 1, memory_fraction: 0.5}\nlayers: []\n",
            "kv_cache.memory_fraction: expected no such key beside num_blocks"),
        badFile(
            """
            kv_cache: {memory_fraction: 0.5}
            layers: [{name: a, num_heads: 8, head_size: 256}]
            """,
            "kv_cache.memory_fraction: expected a kv_cache_dtype other than auto",
            "layer 'a'"),
        badFile("kv_cache: {num_blocks: 3000000000}\nlayers: []\n", "kv_cache.num_blocks", "30000"),
        badFile(
            """
            kv_cache: {block_size: 2147483632, num_blocks: 2147483647}
            layers: [{name: a, num_heads: 8, head_size: 256}]
            """,
            "job.yaml:1:48: kv_cache.num_blocks: expected caches of less than 2^63 bytes"),
        badFile("kv_cache: {dtype: half}\nlayers: []\n", "kv_cache.dtype", "float16", "got 'half'"),
        badFile(
            """
            kv_cache: {num_blocks: 1}
            layers:
              - {name: a, num_heads: 1, head_size: 32}
              - {name: a, num_heads: 1, head_size: 32}
            """,
            "job.yaml:4:12: layers[1].name: 'a' is the name of layers[0] too"),
        badFile(sharing("num_heads: 2, head_size: 64"), "same head_size ('a' has 32), got 64"),
        badFile(sharing("num_heads: 4, head_size: 32"), "same num_kv_heads ('a' has 2), got 4"),
        badFile(
            sharing("num_heads: 2, head_size: 32, attn_type: encoder_decoder"),
            "same attn_type ('a' has decoder), got encoder_decoder"),
        badFile(
            sharing("num_heads: 2, head_size: 32, kv_cache_dtype: fp8"),
            "same kv_cache_dtype ('a' has auto), got fp8_e4m3"),
        badFile(
            """
            kv_cache: {num_blocks: 1}
            layers:
              - {name: b, num_heads: 2, head_size: 32}
              - {name: a, num_heads: 2, head_size: 32, kv_sharing_target_layer_name: c}
              - {name: c, num_heads: 2, head_size: 32}
            """,
            "job.yaml:4:74: layers[1].kv_sharing_target_layer_name",
            "one of the layers before this one (b), got 'c'"));
  }

  private static String sharing(String keys) {
    return """
    kv_cache: {num_blocks: 1}
    layers:
      - {name: a, num_heads: 2, head_size: 32}
      - {name: b, kv_sharing_target_layer_name: a, %s}
    """
        .formatted(keys);
  }

  @ParameterizedTest
  @MethodSource("problems")
  void namesPlaceKeyAcceptedAndGot(String text, String[] parts) {
    assertThatThrownBy(() -> JobFile.parse(text, "job.yaml"))
        .isInstanceOf(InvalidJobException.class)
        .hasMessageStartingWith("job.yaml")
        .hasMessageContainingAll(parts);
  }

  @Test
  void deepNestingIsRefusedWithoutACrash() {
    String text = "layers: " + String.join("", Collections.nCopies(100_000, "[")) + "\n";

    assertThatThrownBy(() -> JobFile.parse(text, "job.yaml"))
        .isInstanceOf(InvalidJobException.class);
  }
}
