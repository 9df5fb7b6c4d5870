/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* droverd: starts in this order, runs the main loop, stops in the reverse order. VMs run on without it. */
#include "api/http.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/log.h"
#include "daemon/config.h"
#include "daemon/service-new.h"

#include <glib-unix.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define GRACE_MS 20000 /* for jobs under way when we are asked to stop */

typedef struct {
  DrConfig config;
  DrHost host;
  GMainLoop *loop;
  DrService *service;
  DrApi *api;
} Daemon;

static gboolean
on_signal(gpointer data)
{
  g_main_loop_quit(data);
  return G_SOURCE_CONTINUE;
}

static gboolean
make_directories(Daemon *d, GError **error)
{
  d->host.run_dir = d->config.run_dir;
  d->host.state_dir = d->config.state_dir;
  d->host.cache_dir = g_build_filename(d->config.state_dir, "cache", NULL);
  return dr_mkdir(d->host.run_dir, 0700, error) && dr_mkdir(d->host.state_dir, 0700, error) &&
         dr_mkdir(d->host.cache_dir, 0700, error);
}

/* Many VMs with many descriptors each; what is handed to a QEMU is numbered low. */
static void
raise_limits(void)
{
  struct rlimit limit;

  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

static void
tell_systemd(void)
{
  /* sd_notify(3) is one datagram; no library is needed for it. */
  const char *path = g_getenv("NOTIFY_SOCKET");
  g_autoptr(GSocket) socket = NULL;
  g_autoptr(GSocketAddress) address = NULL;

  if (!path)
    return;
  socket = g_socket_new(G_SOCKET_FAMILY_UNIX, G_SOCKET_TYPE_DATAGRAM, G_SOCKET_PROTOCOL_DEFAULT, NULL);
  address = path[0] == '@' ? g_unix_socket_address_new_with_type(path + 1, -1, G_UNIX_SOCKET_ADDRESS_ABSTRACT)
                           : g_unix_socket_address_new(path);
  if (socket)
    g_socket_send_to(socket, address, "READY=1", 7, NULL, NULL);
}

static gboolean
start(Daemon *d, GError **error)
{
  g_autofree char *socket_path = NULL;

  if (!make_directories(d, error))
    return FALSE;
  d->loop = g_main_loop_new(NULL, FALSE);
  d->host.context = g_main_context_default();
  d->host.events = dr_events_new();
  /* The state file before anything else: it keeps a second droverd out. */
  d->host.store = dr_store_open(d->host.state_dir, error);
  if (!d->host.store)
    return FALSE;
  /* What an earlier droverd left half done is taken up before anybody can ask for more: its VMs have a job already. */
  d->service = dr_service_new(&d->host, &d->config, error);
  if (!d->service)
    return FALSE;
  socket_path = g_build_filename(d->host.run_dir, "api.sock", NULL);
  d->api = dr_api_new(d->service, d->host.events, socket_path, error);
  if (!d->api)
    return FALSE;
  g_message("droverd %s listens on %s", DROVER_VERSION, socket_path);
  tell_systemd();
  return TRUE;
}

static void
stop(Daemon *d)
{
  if (d->service)
    dr_service_end_waits(d->service);
  g_clear_pointer(&d->api, dr_api_free);
  if (d->service && !dr_service_free(d->service, GRACE_MS))
    _exit(0); /* threads of jobs use all of this; what they leave half done is journalled */
  g_clear_pointer(&d->host.store, dr_store_close);
  g_free(d->host.cache_dir);
  dr_config_clear(&d->config);
  if (d->loop)
    g_main_loop_unref(d->loop);
}

static int
complain(const GError *error, int status)
{
  const char *remedy = dr_error_get_remedy(error);

  fprintf(stderr, "droverd: %s\n", error->message);
  if (remedy)
    fprintf(stderr, "  remedy: %s\n", remedy);
  return status;
}

int
main(int argc, char **argv)
{
  Daemon d = { 0 };
  g_autoptr(GError) error = NULL;
  int status = 0;

  setlocale(LC_ALL, "C.UTF-8"); /* numbers in QMP and JSON have points */
  if (!dr_config_load(&d.config, &argc, &argv, &error))
    return complain(error, 2);
  if (d.config.version) {
    printf("droverd %s\n", DROVER_VERSION);
    return 0;
  }
  dr_log_init(d.config.debug);
  signal(SIGPIPE, SIG_IGN);
  raise_limits();
  if (start(&d, &error)) {
    g_unix_signal_add(SIGTERM, on_signal, d.loop);
    g_unix_signal_add(SIGINT, on_signal, d.loop);
    g_main_loop_run(d.loop);
    g_message("droverd stops; the VMs run on");
  } else {
    status = complain(error, 1);
  }
  stop(&d);
  return status;
}
