// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

/**
 * A backend that the library knows.
 *
 * @param device processor or GPU name, empty where there is none
 * @param usable whether an engine can be opened on it here
 * @param reason why it is usable or not
 */
public record BackendInfo(String name, String device, boolean usable, String reason) {}
