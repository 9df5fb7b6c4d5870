/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* droverd's options: a file, then the command line over it. */
#pragma once
#include <glib.h>

typedef enum {
  DR_TRANSPORT_TUNNEL = 1 << 0,  /* TLS */
  DR_TRANSPORT_PLAIN = 1 << 1,   /* neither encrypted nor authenticated */
  DR_TRANSPORT_HANDOFF = 1 << 2, /* the same; QEMU gets the socket */
} DrTransports;

typedef struct {
  char *run_dir;   /* default /run/drover, or XDG_RUNTIME_DIR/drover when not root */
  char *state_dir; /* default /var/lib/drover, or XDG_STATE_HOME/drover */
  gboolean debug;
  gboolean version;

  char *listen_address; /* an IP address; NULL: every address of this host */
  guint16 listen_port;  /* 0: droverd does not listen for peers */

  gboolean tls_libvirt; /* the keys are in libvirt's default places, and tls_dir is NULL */
  char *tls_dir;        /* default /etc/drover/tls, or XDG_CONFIG_HOME/drover/tls; see dr_pki_find() */
  char *tls_crl;        /* nullable */

  char **peers_allow;      /* nullable: those of `drover peer add` may connect; see dr_config_allows_peer() */
  GHashTable *peers_pins;  /* name in lower case -> pin (dr_pin_matches()); may be empty */
  DrTransports transports; /* those that a move may use; default DR_TRANSPORT_TUNNEL */
  char **qemu_binaries;    /* fnmatch(3) patterns */

  char *api_address;                        /* an IP address; NULL: every address of this host */
  guint16 api_port;                         /* 0: the API is on its unix socket only */
  char **api_clients, **api_readers;        /* nullable; patterns of names, as peers_allow */
  char *api_read_group, *api_operate_group; /* nullable; names or numbers */
} DrConfig;

/* Errors name the file, group and key. An unknown key is an error: a typing mistake must not pass in silence. Nothing is
 * looked at but the file itself: whether the keys are there is dr_pki_find()'s to say. */
gboolean dr_config_load(DrConfig *config, int *argc, char ***argv, GError **error);
void dr_config_clear(DrConfig *config);

/* Whether one of the names of a certificate (dr_cert_names()) fits a pattern of allow=. Letters' case does not count; '*'
 * takes dots, too. FALSE where there is no allow=. */
gboolean dr_config_allows_peer(const DrConfig *config, const char *const *names);

/* The pin that pins= has for one of these names, or NULL. (transfer none) */
const char *dr_config_pin_of(const DrConfig *config, const char *const *names);

/* The bit of "tunnel", "plain" or "handoff"; 0: it is none of them. */
DrTransports dr_config_transport(const char *name);

/* Whether a peer may have this QEMU started: an absolute path without '.', '..' or '//' that fits a pattern, in which '*' and '?'
 * do not take a '/'. What a symbolic link at that path leads to is the administrator's choice. */
gboolean dr_config_allows_binary(const DrConfig *config, const char *path);
