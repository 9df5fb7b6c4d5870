/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Everything that can be known before an upgrade starts: what the guest is in truth, what stands in the way, how its RAM
 * will get there. Changes nothing; starts nothing but the probe of an unknown binary. */
#pragma once
#include "argv/rewrite.h"
#include "job/inventory.h"
#include "qemu/caps.h"
#include "qemu/memory.h"
#include "vm/vm.h"

typedef enum {
  DR_MEMORY_AUTO,
  DR_MEMORY_SHARED,   /* nothing is copied: both QEMUs map the same pages */
  DR_MEMORY_COPY,     /* pre-copy */
  DR_MEMORY_POSTCOPY, /* post-copy with release-ram: no second chunk of memory */
} DrMemoryMode;

const char *dr_memory_mode_name(DrMemoryMode mode);
gboolean dr_memory_mode_parse(const char *name, DrMemoryMode *ret_mode, GError **error);

typedef struct {
  DrFindings *findings;
  char *binary;           /* what the new QEMU is started from, absolute */
  gboolean keep_program;  /* the command line's own program and launcher are used as they are */
  DrCaps *caps;           /* of it; NULL with a blocker when it cannot be asked */
  DrInventory *inventory; /* of the running QEMU; NULL where that is on another host */
  char *machine;          /* canonical */
  gboolean kvm;
  DrArgv *truth;        /* the command line that describes the guest as it is now */
  GPtrArray *ram;       /* of DrRamBlock */
  GPtrArray *needs;     /* of DrNeed, numbers not filled yet */
  DrMemoryMode mode;    /* decided */
  char *reason;         /* why */
  guint64 promised;     /* bytes of the host's memory, see memory-promise.h; given back with this */
  GPtrArray *to_make;   /* nullable: files that are made before the new QEMU starts */
  gboolean was_running; /* runs, or is paused */
} DrPreflight;

void dr_preflight_free(DrPreflight *preflight);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(DrPreflight, dr_preflight_free)

/* `source` is the VM's monitor, taken by the caller. `qemu` NULL: the same path as now. An error is only for what keeps
 * preflight itself from being done (QMP broke); everything about the VM is a finding. */
DrPreflight *dr_preflight(DrVm *vm, DrQmp *source, const char *qemu, DrMemoryMode wanted, GError **error);

/* Blockers "image-rights" for images that the running QEMU's user may not open, where that is not droverd's. */
void dr_preflight_image_rights(DrPreflight *p, DrVm *vm);
/* The same by test(1), behind `launcher`, which gives it that user's rights. `tests` (element-type utf8): "-w", PATH, "-r", PATH … */
void dr_preflight_ask_rights(DrPreflight *p, const char *const *launcher, uid_t uid, const GPtrArray *tests);

/* Takes the memory that all of p->ram needs, until `p` is freed: what comes at the same time has to see it. A blocker where it is not free on
 * `where` ("this host"). */
void dr_preflight_promise(DrPreflight *p, const char *where);

/* The two halves of it, for a move to another host. departure: where the guest runs: what it is, and what keeps it here.
 * arrival: where it shall run; `p` has findings, truth, machine, kvm of the departure, and gets binary and caps.
 * `qemu` NULL: the program of the command line. */
DrPreflight *dr_preflight_departure(DrVm *vm, DrQmp *source, GError **error);
void dr_preflight_arrival(DrPreflight *p, DrVm *vm, const char *qemu);

/* What the command line alone tells of an upgrade, while nobody may use the monitor. `machine` is filled as far as it is there. */
DrPreflight *dr_preflight_words(DrVm *vm, const char *qemu, GError **error);

/* Fills inventory, machine, kvm and truth, and adds to `p->findings` what keeps that from being moved. */
gboolean dr_preflight_truth(DrPreflight *p, DrVm *vm, DrQmp *source, GError **error);

/* Whether the guest is still what `p`, which found nothing in the way, was made from: somebody may have taken a snapshot or
 * unplugged a device since, by another monitor. What has changed is a blocker "changed" in `findings`. Takes about 2 ms. */
gboolean dr_preflight_again(const DrPreflight *p, DrVm *vm, DrQmp *source, DrFindings *findings,
                            GError **error);

/* {"vm","ok","findings","memory_mode","memory_reason","qemu_before","qemu_after"}. (transfer full) */
JsonObject *dr_preflight_json(const DrPreflight *preflight, DrVm *vm, DrQmp *source);
