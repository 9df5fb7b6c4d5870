/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the sub-option view share. For opts*.c only. */
#pragma once
#include "argv/json-tree.h"
#include "argv/options.h"
#include "argv/opts.h"

/* How an entry is written. */
typedef enum {
  DR_STYLE_PAIR,    /* key=value */
  DR_STYLE_IMPLIED, /* value: the first entry, its key being the option's implied one */
  DR_STYLE_FLAG,    /* key, for key=on */
  DR_STYLE_NOFLAG,  /* nokey, for key=off */
  DR_STYLE_PLUS,    /* +key, for key=on; -cpu only */
  DR_STYLE_MINUS,   /* -key, for key=off; -cpu only */
  DR_STYLE_JSON,    /* a leaf of the tree */
} DrStyle;

typedef struct {
  DrStyle style;
  char *key;
  char *value; /* decoded */
} DrOptsEntry;

struct _DrOpts {
  const DrOptInfo *info;
  DrOptsForm form;
  GPtrArray *entries; /* (element-type DrOptsEntry) */
  gboolean trailing;  /* the text ended with a comma that means nothing */
  DrJsonTree *tree;   /* DR_OPTS_JSON: the truth; `entries` are its leaves */
  char *original;     /* DR_OPTS_JSON: the text, until something is changed */
};

static inline DrOptsEntry *
dr_opts_entry(const DrOpts *opts, guint i)
{
  return opts->entries->pdata[i];
}

DrOptsEntry *dr_opts_add_entry(DrOpts *opts, DrStyle style, const char *key, const char *value);

/* opts-keyval.c: the three text forms. Parsing cannot fail: whatever it is, it has a reading. */
void dr_opts_keyval_parse(DrOpts *opts, const char *text);
void dr_opts_keyval_print(const DrOpts *opts, GString *out);

/* opts-json.c */
gboolean dr_opts_json_parse(DrOpts *opts, const char *text, GError **error);
void dr_opts_json_print(const DrOpts *opts, GString *out);
/* `kind` is what the new value is written as; DR_JSON_TREE_STRING keeps the old value's kind where it can. */
void dr_opts_json_set(DrOpts *opts, DrJsonTreeKind kind, const char *key, const char *value);
void dr_opts_json_append(DrOpts *opts, const char *key, const char *value);
gboolean dr_opts_json_unset(DrOpts *opts, const char *key);
void dr_opts_json_get_all(const DrOpts *opts, const char *key, GStrvBuilder *into);
