/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a request's body may hold. A member that nobody knows, or one of another type, is an error: what was meant by it
 * would else silently not happen. */
#pragma once
#include "base/json.h"

typedef enum {
  DR_MEMBER_TEXT,
  DR_MEMBER_TEXTS, /* an array of strings */
  DR_MEMBER_FLAG,
  DR_MEMBER_NUMBER, /* whole */
  DR_MEMBER_OBJECT,
  DR_MEMBER_ANY,
} DrMemberType;

typedef struct {
  const char *name;
  DrMemberType type;
  gint64 min, max; /* of a number */
} DrMember;

/* `members` ends with a nameless one. A null stands for an absent member. */
gboolean dr_request_check(JsonObject *request, const DrMember *members, GError **error);
