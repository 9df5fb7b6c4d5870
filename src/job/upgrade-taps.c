/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The taps that both QEMUs have open for a while. How they were is noted in the journal, too: a droverd that dies while the new
 * QEMU starts cannot put back what that one changes, and its successor has to. */
#include "base/error.h"
#include "job/upgrade-internal.h"

void
dr_upgrade_add_tap(DrUpgrade *u, int fd, int source_fd, const char *ifname)
{
  u->many_queues |= g_ptr_array_find_with_equal_func(u->tap_names, ifname, g_str_equal, NULL);
  g_array_append_val(u->tap_fds, fd);
  g_array_append_val(u->tap_source_fds, source_fd);
  g_ptr_array_add(u->tap_names, g_strdup(ifname));
}

static const int *
fds_of(const DrUpgrade *u)
{
  return (const int *)(const void *)u->tap_fds->data;
}

static const char *const *
names_of(const DrUpgrade *u)
{
  return (const char *const *)u->tap_names->pdata;
}

gboolean
dr_upgrade_guard_taps(DrUpgrade *u, GError **error)
{
  if (u->tap_fds->len == 0)
    return TRUE;
  u->guard = dr_tap_guard_new(fds_of(u), names_of(u), u->tap_fds->len, error);
  if (!u->guard)
    return FALSE;
  u->plan.taps = dr_tap_guard_write(u->guard);
  for (guint i = 0; i < u->tap_fds->len; i++) {
    JsonObject *tap = json_array_get_object_element(u->plan.taps, i);

    json_object_set_int_member(tap, "fd", g_array_index(u->tap_source_fds, int, i));
    json_object_set_string_member(tap, "ifname", names_of(u)[i]);
  }
  return TRUE;
}

static gboolean
find(DrUpgrade *u, GError **error)
{
  for (guint i = 0; i < json_array_get_length(u->plan.taps); i++) {
    JsonObject *tap = json_array_get_object_element(u->plan.taps, i);
    int source_fd = (int)dr_json_int(tap, "fd", -1);
    int fd = dr_proc_get_fd(&u->plan.source, source_fd, error);

    if (fd < 0)
      return FALSE;
    g_array_append_val(u->fds, fd);
    dr_upgrade_add_tap(u, fd, source_fd, dr_json_str(tap, "ifname", ""));
  }
  u->guard = dr_tap_guard_read(fds_of(u), names_of(u), u->tap_fds->len, u->plan.taps, error);
  return u->guard != NULL;
}

void
dr_upgrade_find_taps(DrUpgrade *u)
{
  g_autoptr(GError) error = NULL;

  if (u->plan.taps && json_array_get_length(u->plan.taps) && dr_proc_alive(&u->plan.source) &&
      !find(u, &error))
    g_warning("VM '%s': its taps stay as they are: %s", dr_vm_name(u->vm), error->message);
}
