/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Rights by group and by name. */
#include "api/access.h"
#include "base/error.h"

#include <errno.h>
#include <fnmatch.h>
#include <grp.h>
#include <sys/socket.h>
#include <unistd.h>

#define NOBODY ((gid_t)-1)
#define GROUPS_MAX 65536        /* NGROUPS_MAX of Linux */
#define ENTRY_MAX (1024 * 1024) /* bytes of a group's entry: its members' names are among them */

/* --- Groups --- */

static gboolean
find_group(const char *key, const char *name, gid_t *ret_gid, GError **error)
{
  g_autofree char *buffer = NULL;
  struct group entry, *found = NULL;
  guint64 number;
  int code = ERANGE;

  *ret_gid = NOBODY;
  if (!name)
    return TRUE;
  if (g_ascii_string_to_unsigned(name, 10, 0, G_MAXUINT32 - 1, &number, NULL)) {
    *ret_gid = (gid_t)number;
    return TRUE;
  }
  for (gsize size = 4096; code == ERANGE && size <= ENTRY_MAX; size *= 2) {
    buffer = g_realloc(buffer, size);
    code = getgrnam_r(name, &entry, buffer, size, &found);
  }
  if (found) {
    *ret_gid = found->gr_gid;
    return TRUE;
  }
  dr_error_set(error, DR_ERROR_INVALID, "%s in [api]: there is no group '%s'", key, name);
  return dr_error_remedy(error, "make it (groupadd --system %s), or name another one", name);
}

gboolean
dr_access_init(DrAccess *access, const DrApiAccess *wanted, GError **error)
{
  *access = (DrAccess){ .read = NOBODY, .operate = NOBODY };
  if (!wanted)
    return TRUE;
  access->by_group = wanted->read_group || wanted->operate_group;
  access->read_group = g_strdup(wanted->read_group);
  access->operate_group = g_strdup(wanted->operate_group);
  access->clients = g_strdupv((char **)wanted->clients);
  access->readers = g_strdupv((char **)wanted->readers);
  return find_group("read-group", access->read_group, &access->read, error) &&
         find_group("operate-group", access->operate_group, &access->operate, error);
}

void
dr_access_clear(DrAccess *access)
{
  g_free(access->read_group);
  g_free(access->operate_group);
  g_strfreev(access->clients);
  g_strfreev(access->readers);
}

/* The supplementary groups of the other end. The kernel says ERANGE and how many bytes it takes, where they do not fit. */
static GArray *
peer_groups(int fd)
{
  g_autoptr(GArray) groups = g_array_new(FALSE, FALSE, sizeof(gid_t));
  socklen_t bytes = 64 * sizeof(gid_t);

  for (int i = 0; i < 2 && bytes <= GROUPS_MAX * sizeof(gid_t); i++) {
    g_array_set_size(groups, bytes / sizeof(gid_t));
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups->data, &bytes) == 0) {
      g_array_set_size(groups, bytes / sizeof(gid_t));
      return g_steal_pointer(&groups);
    }
    if (errno != ERANGE)
      break;
  }
  g_array_set_size(groups, 0);
  return g_steal_pointer(&groups);
}

static gboolean
is_member(gid_t wanted, gid_t primary, const GArray *groups)
{
  if (wanted == NOBODY)
    return FALSE;
  if (wanted == primary)
    return TRUE;
  for (guint i = 0; i < groups->len; i++)
    if (g_array_index(groups, gid_t, i) == wanted)
      return TRUE;
  return FALSE;
}

DrRights
dr_access_of_socket(const DrAccess *access, int fd, char **ret_who)
{
  struct ucred peer;
  socklen_t len = sizeof peer;
  g_autoptr(GArray) groups = NULL;

  *ret_who = NULL;
  if (!access->by_group)
    return DR_RIGHTS_ALL;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
    return DR_RIGHTS_NONE;
  *ret_who = g_strdup_printf("uid %u", (guint)peer.uid);
  if (peer.uid == 0 || peer.uid == geteuid())
    return DR_RIGHTS_ALL;
  groups = peer_groups(fd);
  if (is_member(access->operate, peer.gid, groups))
    return DR_RIGHTS_ALL;
  return is_member(access->read, peer.gid, groups) ? DR_RIGHTS_READ : DR_RIGHTS_NONE;
}

/* --- Names --- */

static gboolean
fits_any(char **patterns, const char *const *names)
{
  for (char **pattern = patterns; pattern && *pattern; pattern++)
    for (const char *const *name = names; *name; name++)
      if (fnmatch(*pattern, *name, FNM_CASEFOLD | FNM_NOESCAPE) == 0)
        return TRUE;
  return FALSE;
}

DrRights
dr_access_of_names(const DrAccess *access, const char *const *names)
{
  if (fits_any(access->clients, names))
    return DR_RIGHTS_ALL;
  return fits_any(access->readers, names) ? DR_RIGHTS_READ : DR_RIGHTS_NONE;
}

/* --- What is told --- */

static void
remedy_of_group(const DrAccess *access, DrRights rights, GError **error)
{
  const char *group =
      rights == DR_RIGHTS_NONE && access->read_group ? access->read_group : access->operate_group;

  if (!group)
    dr_error_remedy(error, "do it as root: droverd.conf has no operate-group= in [api]");
  else if (rights == DR_RIGHTS_NONE && access->read_group && access->operate_group)
    dr_error_remedy(
        error, "become a member of the group '%s' (to look) or '%s' (to do everything), and log in again",
        access->read_group, access->operate_group);
  else
    dr_error_remedy(error, "become a member of the group '%s', and log in again", group);
}

gboolean
dr_access_deny(const DrAccess *access, DrRights rights, const char *who, gboolean by_tls, GError **error)
{
  dr_error_set(error, DR_ERROR_DENIED,
               rights == DR_RIGHTS_NONE ? "%s may not use this droverd"
                                        : "%s may look at what this droverd has, and not do this",
               who ? who : "somebody unknown");
  if (by_tls)
    dr_error_remedy(error,
                    "have the name of its certificate put into %s in [api] of droverd.conf on that host",
                    rights == DR_RIGHTS_NONE ? "clients= or readers=" : "clients=");
  else
    remedy_of_group(access, rights, error);
  return FALSE;
}
