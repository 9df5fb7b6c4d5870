/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* droverd: starts in this order, runs the main loop, stops in the reverse order. VMs run on without it. */
#include "api/http.h"
#include "base/activation.h"
#include "base/error.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/notify.h"
#include "daemon/config.h"
#include "daemon/service-new.h"
#include "qemu/scope.h"

#include <errno.h>
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
  GSource *watchdog; /* nullable */
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

/* The API for others than this user. */
static gboolean
open_api(Daemon *d, const char *socket_path, GError **error)
{
  const DrConfig *config = &d->config;
  g_autoptr(DrTlsContext) keys = config->api_port ? dr_service_keys(d->service, error) : NULL;
  const DrApiAccess access = {
    .read_group = config->api_read_group,
    .operate_group = config->api_operate_group,
    .tcp = config->api_port != 0,
    .address = config->api_address,
    .port = config->api_port,
    .clients = config->api_clients,
    .readers = config->api_readers,
    .tls = keys,
  };

  if (config->api_port && !keys) {
    g_prefix_error(error, "cannot serve the API by TLS without keys: ");
    return FALSE;
  }
  d->api = dr_api_new(d->service, d->host.events, socket_path, &access, error);
  if (d->api && config->api_port)
    g_message("the API is on %s port %d, too", config->api_address ? config->api_address : "*",
              config->api_port);
  return d->api != NULL;
}

/* Others than its owner come to the socket through it, and to nothing else: what is in it has modes of its own. */
static gboolean
let_pass(const char *run_dir, GError **error)
{
  struct stat st;

  return (stat(run_dir, &st) == 0 && chmod(run_dir, (st.st_mode & 07777) | S_IXGRP | S_IXOTH) == 0) ||
         dr_error_set_errno(error, errno, "cannot let others pass through '%s' to the API's socket", run_dir);
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
  if ((d->config.api_read_group || d->config.api_operate_group) && !let_pass(d->host.run_dir, error))
    return FALSE;
  if (!open_api(d, socket_path, error))
    return FALSE;
  g_message("droverd %s listens on %s", DROVER_VERSION, socket_path);
  d->watchdog = dr_notify_watchdog_start(d->host.context);
  dr_notify("READY=1");
  return TRUE;
}

static void
stop(Daemon *d)
{
  dr_notify("STOPPING=1");
  if (d->service)
    dr_service_end_waits(d->service);
  g_clear_pointer(&d->api, dr_api_free);
  if (d->service && !dr_service_free(d->service, GRACE_MS))
    _exit(0); /* threads of jobs use all of this; what they leave half done is journalled */
  g_clear_pointer(&d->host.store, dr_store_close);
  g_free(d->host.cache_dir);
  dr_config_clear(&d->config);
  if (d->watchdog) {
    g_source_destroy(d->watchdog);
    g_source_unref(d->watchdog);
  }
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
  dr_notify_init();
  dr_activation_init(DR_ACTIVATION_FIRST);
  dr_scope_init();
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
