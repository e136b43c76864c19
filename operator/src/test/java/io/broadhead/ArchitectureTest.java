// SPDX-License-Identifier: Apache-2.0
package io.broadhead;

import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.classes;
import static com.tngtech.archunit.lang.syntax.ArchRuleDefinition.noClasses;

import com.tngtech.archunit.core.importer.ImportOption;
import com.tngtech.archunit.junit.AnalyzeClasses;
import com.tngtech.archunit.junit.ArchTest;
import com.tngtech.archunit.lang.ArchRule;

/** Who may know whom, from the native binding up to the Flink operator. */
@AnalyzeClasses(packages = "io.broadhead", importOptions = ImportOption.DoNotIncludeTests.class)
class ArchitectureTest {
  @ArchTest
  static final ArchRule attentionKnowsNoEngineAndNoBinding =
      noClasses()
          .that()
          .resideInAPackage("io.broadhead.attention..")
          .should()
          .dependOnClassesThat()
          .resideInAnyPackage(
              "org.apache.flink..",
              "org.bytedeco..",
              "io.broadhead.nativelib..",
              "io.broadhead.flink..");

  @ArchTest
  static final ArchRule jobsAndBlockTablesKnowNoSteps =
      noClasses()
          .that()
          .resideInAnyPackage("io.broadhead.attention.job", "io.broadhead.attention.cache")
          .should()
          .dependOnClassesThat()
          .resideInAPackage("io.broadhead.attention");

  @ArchTest
  static final ArchRule onlyTheFacadeKnowsTheBinding =
      noClasses()
          .that()
          .resideOutsideOfPackages("io.broadhead.kernel..", "io.broadhead.nativelib..")
          .should()
          .dependOnClassesThat()
          .resideInAnyPackage("org.bytedeco..", "io.broadhead.nativelib..");

  @ArchTest
  static final ArchRule arrowKnowsNoKernels =
      noClasses()
          .that()
          .resideInAPackage("io.broadhead.arrow..")
          .should()
          .dependOnClassesThat()
          .resideInAnyPackage("io.broadhead.kernel..", "org.bytedeco..");

  @ArchTest
  static final ArchRule nothingLooksUp =
      classes()
          .that()
          .resideInAnyPackage(
              "io.broadhead.nativelib..", "io.broadhead.arrow..", "io.broadhead.kernel..")
          .should()
          .onlyDependOnClassesThat()
          .resideOutsideOfPackages(
              "io.broadhead.attention..",
              "io.broadhead.flink..",
              "io.broadhead.job..",
              "org.apache.flink..");

  @ArchTest
  static final ArchRule theOperatorKnowsNoJob =
      noClasses()
          .that()
          .resideInAnyPackage("io.broadhead.attention..", "io.broadhead.flink..")
          .should()
          .dependOnClassesThat()
          .resideInAPackage("io.broadhead.job..");
}
