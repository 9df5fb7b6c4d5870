/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Guest RAM: memfds for shared RAM, and what RAM a running QEMU has. */
#pragma once
#include "qemu/proc.h"
#include "qmp/qmp.h"

/* Makes the memfd for one RAM block, at least `size` bytes, whole pages. `hugepage` bytes a page, 0: normal pages. With
 * huge pages the memory is reserved at once (a later shortage would be SIGBUS in the guest); normal pages are taken when
 * touched. CLOEXEC is set; its size is sealed, so that nobody who has it can take the guest's pages away.
 * Returns the descriptor or -1. */
int dr_memory_create(const char *vm, const char *block, guint64 size, guint64 hugepage, GError **error);

/* The default huge page size of this host in bytes (Hugepagesize of /proc/meminfo), 2 MiB if it is not told. */
guint64 dr_memory_hugepage(void);

/* Whether a QEMU that this process starts, and that has the user `uid` when it takes a guest, may use userfaultfd(2): no post-copy without. */
gboolean dr_memory_has_userfaultfd(uid_t uid);

typedef enum {
  DR_RAM_ANONYMOUS,   /* plain -m, memory-backend-ram, private file: must be copied */
  DR_RAM_SHARED_FILE, /* memory-backend-file,share=on: a new QEMU can map the same pages (x-ignore-shared) */
  DR_RAM_SHARED_MEMFD, /* memory-backend-memfd (share=on is its default); with x-ignore-shared 5.2 and 7.2 leave it out,
                          10.0 and 11.1 send it all the same */
} DrRamKind;

typedef struct {
  char *id;     /* the RAM block's name without "/objects/": "pc.ram", "mem0" */
  guint64 size; /* bytes */
  DrRamKind kind;
  gboolean
      shared; /* share=on. With DR_RAM_ANONYMOUS (memory-backend-ram,share=on) a 7.2 leaves its content out of a
                        migration with x-ignore-shared: LOST, and "completed" (5.2, 10.0 and 11.1 send it) */
  gboolean
      in_use; /* the guest has it; an -object that no machine, NUMA node or device took is not migrated */
  guint64 hugepage; /* page size when not the normal one, else 0 */
  int fd; /* number of a descriptor IN THAT PROCESS that refers to the pages, -1: none or not known for sure */
  char *path; /* nullable: mem-path of a memory-backend-file */
} DrRamBlock;

void dr_ram_block_free(DrRamBlock *block);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrRamBlock, dr_ram_block_free)

/* The guest's RAM backends in order of their ids (query-memdev, qom-get of each in /objects, /proc/PID/fd). The default
 * RAM of `-m` shows as a memory-backend-ram with the machine's default RAM id. Some ms; no change to the guest.
 * Returns: (transfer full) (element-type DrRamBlock). */
GPtrArray *dr_memory_blocks(DrQmp *qmp, const DrProcId *id, GError **error);
