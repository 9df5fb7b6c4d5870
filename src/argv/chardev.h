/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Character devices: the short forms of -serial, -qmp, -monitor, -gdb …, and -chardev, as one struct.
 *
 * Source: QEMU's qemu_chr_parse_compat() and gdbserver_start(), same in 5.2 to 11.1 where nothing else is
 * said, and trying it out: "none" is understood by -serial, -parallel, -monitor and -gdb only; "mon:" goes
 * with every other form but not with "chardev:" and "none"; "file:", "pipe:" and device paths run to the
 * end of the word, commas included; "tcp:" cannot hold an IPv6 address; "pty:PATH" came with 10.0.
 */
#pragma once
#include "argv/opts.h"

typedef enum {
  DR_CHARDEV_NONE, /* "none": the option disables the device, there is no backend */
  DR_CHARDEV_REF,  /* "chardev:ID": a -chardev of the same command line */
  DR_CHARDEV_UNIX, /* socket with path=, or with fd=, an inherited descriptor of either family: see `fd` */
  DR_CHARDEV_TCP,  /* socket with host= and port=; plain, telnet, tn3270 or websocket: see `protocol` */
  DR_CHARDEV_UDP,
  DR_CHARDEV_FILE,
  DR_CHARDEV_PIPE,
  DR_CHARDEV_PTY,
  DR_CHARDEV_STDIO,
  DR_CHARDEV_NULL,
  DR_CHARDEV_VC,
  DR_CHARDEV_SERIAL,   /* a host's serial port or tty: /dev/ttyS0 */
  DR_CHARDEV_PARALLEL, /* /dev/parport0 */
  DR_CHARDEV_RINGBUF,
  DR_CHARDEV_OTHER, /* msmouse, braille, spicevmc, …: `backend` names it */
} DrChardevKind;

typedef enum {
  DR_CHARDEV_PLAIN,
  DR_CHARDEV_TELNET,
  DR_CHARDEV_TN3270,
  DR_CHARDEV_WEBSOCKET,
} DrChardevProtocol;

/* All strings are owned by the struct and may be replaced (g_free the old one). */
typedef struct {
  DrChardevKind kind;
  char *backend;    /* -chardev's backend name: "socket", "file", …; NULL for NONE and REF */
  char *id;         /* of a -chardev, or what REF refers to; else NULL */
  gboolean mux;     /* several front ends share it: "mon:", or mux=on */
  gboolean monitor; /* "mon:": an HMP monitor is on it too: a -chardev in its place needs -mon chardev=ID */
  char *path;       /* UNIX, FILE, PIPE, SERIAL, PARALLEL, PTY with a link path (10.0) */
  char *fd;         /* a socket's fd=: a number, or a name known to getfd; NULL if it has none */
  char *host;       /* TCP, UDP; "" where the short form leaves it out: any for a listener, else localhost */
  char *port;
  char *local_host; /* UDP */
  char *local_port;
  DrChardevProtocol protocol;
  gboolean server;
  gboolean wait;   /* of a server: QEMU waits for a client before it goes on; default TRUE */
  gboolean append; /* FILE: FALSE truncates, which a second QEMU on the same file must not do */
  gboolean signal; /* STDIO: Ctrl-C ends QEMU; default TRUE, FALSE for "mon:stdio" */
  DrOpts *extra;   /* the -chardev keys that are not above (reconnect, delay, tls-creds, logfile, cols …) */
} DrChardev;

/* Parses the argument of a chardev-like option. `option` is "serial", "qmp", "monitor", "gdb", … (the short
 * form) or "chardev" (the sub-options). "gdb" follows gdbserver_start(): tcp: means
 * server=on,wait=off,nodelay=on whatever is written.
 * Returns: (transfer full): NULL with DR_ERROR_INVALID. */
DrChardev *dr_chardev_parse(const char *option, const char *value, GError **error);
DrChardev *dr_chardev_copy(const DrChardev *chardev);
void dr_chardev_free(DrChardev *chardev);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrChardev, dr_chardev_free)

/* The equivalent -chardev sub-options under the name `id`: `-serial file:/x` gives `file,id=ID,path=/x`, and
 * with chardev->append set, `,append=on`. Not for NONE and REF (programming error).
 * Returns: (transfer full). */
DrOpts *dr_chardev_to_opts(const DrChardev *chardev, const char *id);

/* Whether QEMU binds an address for it that a second QEMU could not bind too: a server socket (with `fd` it
 * was bound by somebody else, but it is one), a udp local port. */
gboolean dr_chardev_is_listener(const DrChardev *chardev);

/* The kind's name for messages: "unix socket", "file". */
const char *dr_chardev_kind_name(DrChardevKind kind);
