/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One call to systemd over the system bus, on a connection of its own: the one that GLib shares ends the program when the bus goes away. */
#include "qemu/scope.h"
#include "base/fd.h"

#include <gio/gio.h>
#include <stdlib.h>
#include <string.h>

#define CALL_MS 5000
#define SLICE "drover-vms.slice"

static gboolean is_service;

/* The variable is inherited by whatever a service starts, a shell and a test run among them: only the process that it names is the service. */
void
dr_scope_init(void)
{
  const char *text = g_getenv("SYSTEMD_EXEC_PID");
  guint64 pid;

  is_service = text && geteuid() == 0 && g_ascii_string_to_unsigned(text, 10, 1, G_MAXINT32, &pid, NULL) &&
               pid == (guint64)getpid();
  g_unsetenv("SYSTEMD_EXEC_PID");
}

/* 0: there is no such process. */
static pid_t
parent_of(pid_t pid)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid);
  g_autofree char *text = dr_file_read(path, 4096, NULL, NULL);
  const char *at = text ? strrchr(text, ')') : NULL; /* the name before it may hold anything */

  return at && strlen(at) > 4 ? atoi(at + 4) : 0;
}

/* Of a service's processes at the host's end: the VMs are to be ended before the file systems that their images are on. */
static GVariant *
properties(const char *vm, const DrProcId *id, pid_t keeper)
{
  static const char *const after[] = { "remote-fs.target", "network.target", NULL };
  g_autofree char *description = g_strdup_printf("drover's VM %s", vm);
  const guint32 pids[] = { id->pid, keeper };
  GVariantBuilder all;

  g_variant_builder_init(&all, G_VARIANT_TYPE("a(sv)"));
  g_variant_builder_add(&all, "(sv)", "Description", g_variant_new_string(description));
  g_variant_builder_add(&all, "(sv)", "Slice", g_variant_new_string(SLICE));
  g_variant_builder_add(&all, "(sv)", "CollectMode", g_variant_new_string("inactive-or-failed"));
  g_variant_builder_add(&all, "(sv)", "After", g_variant_new_strv(after, -1));
  g_variant_builder_add(&all, "(sv)", "TasksMax", g_variant_new_uint64(G_MAXUINT64));
  g_variant_builder_add(&all, "(sv)", "PIDs",
                        g_variant_new_fixed_array(G_VARIANT_TYPE_UINT32, pids, 2, sizeof pids[0]));
  return g_variant_builder_end(&all);
}

/* (transfer none): floating. */
static GVariant *
request(const char *vm, const DrProcId *id, pid_t keeper)
{
  g_autofree char *unit = g_strdup_printf("drover-vm-%s-%d.scope", vm, (int)id->pid);
  GVariant *parts[] = { g_variant_new_string(unit), g_variant_new_string("fail"), properties(vm, id, keeper),
                        g_variant_new_array(G_VARIANT_TYPE("(sa(sv))"), NULL, 0) };

  return g_variant_new_tuple(parts, G_N_ELEMENTS(parts));
}

static gboolean
on_late(gpointer cancellable)
{
  g_cancellable_cancel(cancellable);
  return G_SOURCE_REMOVE;
}

/* A bus that takes connections and does not answer: its greeting has no time limit of its own. */
static GSource *
limit_time(GCancellable *cancellable)
{
  GSource *source = g_timeout_source_new(CALL_MS);

  g_source_set_callback(source, on_late, g_object_ref(cancellable), g_object_unref);
  g_source_attach(source, NULL);
  return source;
}

static gboolean
call_systemd(GVariant *floating, GError **error)
{
  g_autoptr(GVariant) parameters = g_variant_ref_sink(floating);
  g_autoptr(GCancellable) cancellable = g_cancellable_new();
  g_autofree char *address = g_dbus_address_get_for_bus_sync(G_BUS_TYPE_SYSTEM, NULL, error);
  g_autoptr(GDBusConnection) bus = NULL;
  g_autoptr(GVariant) answer = NULL;
  g_autoptr(GSource) limit = NULL;

  if (!address)
    return FALSE;
  limit = limit_time(cancellable);
  bus = g_dbus_connection_new_for_address_sync(
      address, G_DBUS_CONNECTION_FLAGS_AUTHENTICATION_CLIENT | G_DBUS_CONNECTION_FLAGS_MESSAGE_BUS_CONNECTION,
      NULL, cancellable, error);
  if (bus)
    answer = g_dbus_connection_call_sync(bus, "org.freedesktop.systemd1", "/org/freedesktop/systemd1",
                                         "org.freedesktop.systemd1.Manager", "StartTransientUnit", parameters,
                                         G_VARIANT_TYPE("(o)"), G_DBUS_CALL_FLAGS_NONE, CALL_MS, cancellable,
                                         error);
  g_source_destroy(limit);
  if (bus)
    g_dbus_connection_close_sync(bus, NULL, NULL);
  return answer != NULL;
}

void
dr_scope_move(const char *vm, const DrProcId *id)
{
  pid_t keeper = is_service && vm ? parent_of(id->pid) : 0;
  g_autoptr(GError) error = NULL;

  if (keeper > 1 && !call_systemd(request(vm, id, keeper), &error))
    g_warning("VM '%s': its QEMU (pid %d) stays in droverd's control group: %s", vm, (int)id->pid,
              error->message);
}
