/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A tap's offloads by ethtool's feature names. */
#include "qemu/tap-features.h"
#include "base/error.h"
#include "base/fd.h"
#include "qemu/tap-socket.h"

#include <errno.h>
#include <net/if.h>
#include <linux/ethtool.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* Newer than Debian 12's headers; a kernel that does not know them does not list the features either. */
#define F_USO4 0x20
#define F_USO6 0x40
#define F_UDP_TUNNEL_GSO 0x80
#define F_UDP_TUNNEL_GSO_CSUM 0x100

/* set_offload() of the kernel's tun.c, read backwards. TUN_F_UFO has no feature any more (Linux 4.14). */
static const struct {
  const char *name;
  guint offload;
} known[] = {
  { "tx-checksum-ip-generic", TUN_F_CSUM },
  { "tx-tcp-segmentation", TUN_F_TSO4 },
  { "tx-tcp6-segmentation", TUN_F_TSO6 },
  { "tx-tcp-ecn-segmentation", TUN_F_TSO_ECN },
  { "tx-udp-segmentation", F_USO4 | F_USO6 },
  { "tx-udp_tnl-segmentation", F_UDP_TUNNEL_GSO },
  { "tx-udp_tnl-csum-segmentation", F_UDP_TUNNEL_GSO_CSUM },
};

struct DrTapFeatures {
  int socket; /* of the tap's network namespace */
  char ifname[IFNAMSIZ];
  guint n_blocks;                /* of 32 features each */
  int bits[G_N_ELEMENTS(known)]; /* which feature; -1: this kernel has it not */
};

static int
ethtool(DrTapFeatures *features, gpointer command)
{
  struct ifreq request = { .ifr_data = command };

  memcpy(request.ifr_name, features->ifname, IFNAMSIZ);
  return ioctl(features->socket, SIOCETHTOOL, &request);
}

/* How many features this kernel has; 0 on error. */
static guint
count_features(DrTapFeatures *features)
{
  struct {
    struct ethtool_sset_info info;
    guint32 count;
  } request = { .info = { .cmd = ETHTOOL_GSSET_INFO, .sset_mask = 1ull << ETH_SS_FEATURES } };

  return ethtool(features, &request) == 0 && request.info.sset_mask ? request.count : 0;
}

static gboolean
find_bits(DrTapFeatures *features)
{
  guint n = count_features(features);
  g_autofree struct ethtool_gstrings *strings = g_malloc0(sizeof *strings + n * ETH_GSTRING_LEN);

  strings->cmd = ETHTOOL_GSTRINGS;
  strings->string_set = ETH_SS_FEATURES;
  strings->len = n;
  if (n == 0 || ethtool(features, strings) < 0)
    return FALSE;
  features->n_blocks = (n + 31) / 32;
  for (guint i = 0; i < G_N_ELEMENTS(known); i++) {
    features->bits[i] = -1;
    for (guint j = 0; j < n; j++)
      if (strncmp((char *)strings->data + j * ETH_GSTRING_LEN, known[i].name, ETH_GSTRING_LEN) == 0)
        features->bits[i] = j;
  }
  return TRUE;
}

DrTapFeatures *
dr_tap_features_new(int tap_fd, GError **error)
{
  g_autoptr(DrTapFeatures) features = g_new0(DrTapFeatures, 1);
  struct ifreq request = { 0 };

  features->socket = -1;
  if (ioctl(tap_fd, TUNGETIFF, &request) < 0) {
    dr_error_set_errno(error, errno, "cannot ask descriptor %d for its tap interface", tap_fd);
    return NULL;
  }
  memcpy(features->ifname, request.ifr_name, IFNAMSIZ);
  features->socket = dr_tap_socket(tap_fd, AF_INET, SOCK_DGRAM);
  if (features->socket < 0 || !find_bits(features)) {
    dr_error_set_errno(error, errno, "cannot read the offloads of tap '%s'", features->ifname);
    dr_error_remedy(error, "its network namespace cannot be entered: run droverd as root");
    return NULL;
  }
  return g_steal_pointer(&features);
}

void
dr_tap_features_free(DrTapFeatures *features)
{
  if (!features)
    return;
  dr_fd_cleanup(&features->socket);
  g_free(features);
}

gboolean
dr_tap_features_read(DrTapFeatures *features, guint *ret_offloads)
{
  gsize size =
      sizeof(struct ethtool_gfeatures) + features->n_blocks * sizeof(struct ethtool_get_features_block);
  g_autofree struct ethtool_gfeatures *blocks = g_malloc0(size);

  blocks->cmd = ETHTOOL_GFEATURES;
  blocks->size = features->n_blocks;
  if (ethtool(features, blocks) < 0)
    return FALSE;
  *ret_offloads = 0;
  for (guint i = 0; i < G_N_ELEMENTS(known); i++) {
    int bit = features->bits[i];

    if (bit >= 0 && blocks->features[bit / 32].active & 1u << bit % 32)
      *ret_offloads |= known[i].offload;
  }
  return TRUE;
}
