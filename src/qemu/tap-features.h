/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The offloads of a tap, which the kernel lets one set on the tap but read only by ethtool; for tap.c. */
#pragma once
#include <glib.h>

typedef struct DrTapFeatures DrTapFeatures;

/* For the interface of a tap descriptor, in whatever network namespace it is. Returns NULL with an error when they cannot
 * be read there. (transfer full) */
DrTapFeatures *dr_tap_features_new(int tap_fd, GError **error);
void dr_tap_features_free(DrTapFeatures *features);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrTapFeatures, dr_tap_features_free)

/* *ret_offloads: as TUNSETOFFLOAD takes them (TUN_F_CSUM | …). */
gboolean dr_tap_features_read(DrTapFeatures *features, guint *ret_offloads);
