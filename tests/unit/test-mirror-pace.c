/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Whether a mirror gets closer. */
#include "job/mirror-pace.h"

#define S G_USEC_PER_SEC

static gboolean
look(DrMirrorPace *pace, gint64 second, gint64 done, gint64 total)
{
  const DrBlockJobLook one = { .state = DR_BLOCK_JOB_RUNNING, .done = done, .total = total };

  return dr_mirror_pace_falls_behind(pace, &one, second * S);
}

/* The guest dirties as much as is copied. */
static void
test_behind(void)
{
  DrMirrorPace pace = { 0 };

  for (gint64 t = 1; t <= 11; t++)
    g_assert_false(look(&pace, t, t * 10, t * 10 + 50));
  g_assert_true(look(&pace, 12, 120, 170));
  g_assert_false(look(&pace, 13, 130, 180)); /* said once, and counted anew */
  for (gint64 t = 14; t <= 23; t++)
    g_assert_false(look(&pace, t, t * 10, t * 10 + 50));
  g_assert_true(look(&pace, 24, 240, 290));
}

static void
test_closer(void)
{
  DrMirrorPace pace = { 0 };

  for (gint64 t = 1; t <= 60; t++) /* a little, each 9 s */
    g_assert_false(look(&pace, t, t * 10, t * 10 + 50 - t / 9));
}

/* A large disk is looked through first; its guest does nothing, and the copy takes longer than 10 s. */
static void
test_beginning(void)
{
  DrMirrorPace pace = { 0 };

  for (gint64 t = 1; t <= 3; t++)
    g_assert_false(look(&pace, t, 0, 0));
  for (gint64 t = 4; t <= 60; t++)
    g_assert_false(look(&pace, t, t * 10, 1000));
}

static void
test_still(void)
{
  DrMirrorPace pace = { 0 };
  const DrBlockJobLook waits = { .state = DR_BLOCK_JOB_RUNNING, .done = 10, .total = 50 };
  const DrBlockJobLook ready = { .state = DR_BLOCK_JOB_READY, .done = 10, .total = 50 };

  g_assert_cmpint(dr_mirror_pace_stands_still(&pace, &waits, 5 * S), ==, 0); /* not begun */
  g_assert_false(look(&pace, 5, 10, 50));
  for (gint64 t = 6; t <= 40; t++)
    g_assert_false(look(&pace, t, 10, 50)); /* the target's doing */
  g_assert_cmpint(dr_mirror_pace_stands_still(&pace, &waits, 40 * S), ==, 35 * S);
  g_assert_cmpint(dr_mirror_pace_stands_still(&pace, &ready, 40 * S), ==, 0);
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/mirror-pace/behind", test_behind);
  g_test_add_func("/mirror-pace/closer", test_closer);
  g_test_add_func("/mirror-pace/beginning", test_beginning);
  g_test_add_func("/mirror-pace/still", test_still);
  return g_test_run();
}
