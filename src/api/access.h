/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Who may do what: by the groups of the process at the other end of the unix socket, by the names of a certificate. */
#pragma once
#include "api/http.h"

#include <sys/types.h>

typedef enum {
  DR_RIGHTS_NONE, /* is told so, and nothing else */
  DR_RIGHTS_READ, /* GET, but for consoles */
  DR_RIGHTS_ALL,
} DrRights;
#define DR_RIGHTS_KINDS 3

typedef struct {
  gboolean by_group;   /* else whoever can open the socket may do everything: it has mode 0600 */
  gid_t read, operate; /* (gid_t)-1: no such group was named */
  char *read_group, *operate_group;
  char **clients, **readers; /* patterns of names; nullable */
} DrAccess;

/* Looks the groups up; a number is taken as it is. Errors: INVALID. dr_access_clear() in any case. */
gboolean dr_access_init(DrAccess *access, const DrApiAccess *wanted, GError **error);
void dr_access_clear(DrAccess *access);

/* Of a connected unix socket, as it was when it connected (SO_PEERCRED, SO_PEERGROUPS): root, the user whom droverd runs as and members
 * of the operating group may do everything. *ret_who: "uid 1000" (transfer full). */
DrRights dr_access_of_socket(const DrAccess *access, int fd, char **ret_who);
/* Of the names in a certificate, of which the first is said to be who it is. */
DrRights dr_access_of_names(const DrAccess *access, const char *const *names);

/* Why `who` may not, as an error DENIED with its remedy. FALSE */
gboolean dr_access_deny(const DrAccess *access, DrRights rights, const char *who, gboolean by_tls,
                        GError **error);
