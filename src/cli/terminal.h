/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Raw mode for standard input that never outlives the process, however it ends. */
#pragma once

/* Sets standard input raw and sees to it that every end of the process but SIGKILL restores it: exit() and
 * the signals that end a process. A stop from outside (SIGTSTP) restores it, too, and going on makes it
 * raw again. */
void dr_terminal_raw(void);

/* As it was. Does nothing if it was not made raw. */
void dr_terminal_restore(void);
