/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Guest RAM as memfds, and which descriptor of a running QEMU is which RAM block.
 *
 * Two memory-backend-memfd of one size look the same in /proc/PID/fd. Where a block is mapped tells them apart: QEMU
 * says its address ("info ramblock" has it in 10.0; "info mtree" and "gpa2hva" lead to it before that), /proc/PID/maps
 * says which inode is mapped there, /proc/PID/fd which descriptor has that inode. */
#include "qemu/memory.h"
#include "base/error.h"
#include "base/fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#define MAX_MAPS (64 * 1024 * 1024)

/* ---- Making ---- */

static guint64
free_hugepages(guint64 hugepage)
{
  g_autofree char *path = g_strdup_printf(
      "/sys/kernel/mm/hugepages/hugepages-%" G_GUINT64_FORMAT "kB/free_hugepages", hugepage / 1024);
  g_autofree char *text = dr_file_read(path, 64, NULL, NULL);

  return text ? g_ascii_strtoull(text, NULL, 10) : 0;
}

static void
create_error(int err, const char *block, guint64 size, guint64 hugepage, GError **error)
{
  dr_error_set_errno(
      error, err, "cannot make %" G_GUINT64_FORMAT " bytes of shared memory for RAM block '%s'", size, block);
  if (hugepage && (err == ENOSPC || err == ENOMEM))
    dr_error_remedy(
        error,
        "it takes %" G_GUINT64_FORMAT " pages of %" G_GUINT64_FORMAT " KiB and %" G_GUINT64_FORMAT
        " are free: write a larger number to /sys/kernel/mm/hugepages/hugepages-%" G_GUINT64_FORMAT
        "kB/nr_hugepages",
        size / hugepage, hugepage / 1024, free_hugepages(hugepage), hugepage / 1024);
  else if (hugepage && (err == EINVAL || err == ENODEV || err == ENOENT))
    dr_error_remedy(error,
                    "this host has no pages of %" G_GUINT64_FORMAT " KiB: see /sys/kernel/mm/hugepages",
                    hugepage / 1024);
  else if (err == EFBIG || err == EINVAL)
    dr_error_remedy(error, "check the size of the guest's memory");
}

int
dr_memory_create(const char *vm, const char *block, guint64 size, guint64 hugepage, GError **error)
{
  g_autofree char *name = g_strdup_printf("drover:%.100s:%.100s", vm, block); /* 249 bytes are the limit */
  guint64 page = hugepage ? hugepage : (guint64)sysconf(_SC_PAGESIZE);
  guint flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  dr_autofd int fd = -1;

  if (size == 0 || size > G_MAXINT64 - page || (page & (page - 1))) {
    dr_error_set(error, DR_ERROR_INVALID,
                 "cannot make RAM block '%s' of %" G_GUINT64_FORMAT " bytes in pages of %" G_GUINT64_FORMAT,
                 block, size, page);
    dr_error_remedy(error, "a page size is a power of two that /sys/kernel/mm/hugepages lists");
    return -1;
  }
  size = (size + page - 1) / page * page;
  if (hugepage)
    flags |= MFD_HUGETLB | (guint)__builtin_ctzll(hugepage)
                               << MAP_HUGE_SHIFT; /* MFD_HUGE_SHIFT is the same */
  fd = memfd_create(name, flags);
  if (fd < 0 || ftruncate(fd, size) < 0 || (hugepage && fallocate(fd, 0, 0, size) < 0) ||
      fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
    create_error(errno, block, size, hugepage, error);
    return -1;
  }
  return dr_fd_steal(&fd);
}

void
dr_ram_block_free(DrRamBlock *block)
{
  if (!block)
    return;
  g_free(block->id);
  g_free(block->path);
  g_free(block);
}

/* ---- What QEMU says of its memory ---- */

/* A line of "info ramblock": "   pc.ram    4 KiB  0xOFFSET 0xUSED 0xTOTAL" and, since 10.0 at the latest, " 0xHVA  rw".
 * A block that no machine or device has taken has no name. */
static gboolean
parse_ramblock(const char *line, char **ret_name, guint64 *ret_page, guint64 *ret_hva)
{
  const char *numbers = strstr(line, "  0x");
  g_autofree char *left = numbers ? g_strchomp(g_strndup(line, numbers - line)) : NULL;
  char *unit = left ? strrchr(left, ' ') : NULL;
  unsigned long long hva = 0;
  char *number;
  guint shift;

  if (!unit)
    return FALSE;
  *unit++ = '\0';
  number = strrchr(left, ' ');
  if (!number)
    return FALSE;
  shift = unit[0] == 'K' ? 10 : unit[0] == 'M' ? 20 : unit[0] == 'G' ? 30 : 0;
  *ret_page = g_ascii_strtoull(number, NULL, 10) << shift;
  *number = '\0';
  *ret_hva = sscanf(numbers, " 0x%*x 0x%*x 0x%*x 0x%llx", &hva) == 1 ? hva : 0;
  *ret_name = g_strdup(g_strstrip(left));
  return TRUE;
}

/* "mem0", "/objects/mem0" (x-use-canonical-path-for-ramblock-id), or "0000:00:04.0/mem0" (a device's own memory). */
static gboolean
is_named(const char *name, const char *id)
{
  const char *last = strrchr(name, '/');

  return g_str_equal(last ? last + 1 : name, id) && !g_str_has_prefix(name, "/rom@");
}

static void
take_ramblocks(GPtrArray *blocks, GArray *hvas, const char *text)
{
  g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

  for (guint i = 0; lines[i]; i++) {
    g_autofree char *name = NULL;
    guint64 page, hva;

    if (!parse_ramblock(lines[i], &name, &page, &hva))
      continue;
    for (guint j = 0; j < blocks->len; j++) {
      DrRamBlock *block = g_ptr_array_index(blocks, j);

      if (!is_named(name, block->id))
        continue;
      block->in_use = TRUE;
      block->hugepage = page > (guint64)sysconf(_SC_PAGESIZE) ? page : 0;
      g_array_index(hvas, guint64, j) = hva;
    }
  }
}

/* The guest-physical address of any part of a block, from "info mtree -f":
 * "  0000000000100000-0000000003ffffff (prio 0, ram): pc.ram @0000000000100000 KVM". */
static gboolean
find_gpa(const char *mtree, const char *id, guint64 *ret_gpa)
{
  g_auto(GStrv) lines = g_strsplit(mtree, "\n", -1);

  for (guint i = 0; lines[i]; i++) {
    unsigned long long gpa;
    int at = 0;

    if (sscanf(lines[i], " %llx-%*x (prio %*d, %*[^)]): %n", &gpa, &at) != 1 || at == 0 ||
        !strstr(lines[i], "ram)"))
      continue;
    lines[i][at + strcspn(lines[i] + at, " \r")] = '\0';
    if (is_named(lines[i] + at, id)) {
      *ret_gpa = gpa;
      return TRUE;
    }
  }
  return FALSE;
}

/* "Host virtual address for 0x0 (pc.ram) is 0x7fb59be00000"; 0 for any other answer. */
static guint64
ask_hva(DrQmp *qmp, guint64 gpa)
{
  g_autofree char *text = dr_qmp_hmp(qmp, NULL, "gpa2hva 0x%" G_GINT64_MODIFIER "x", gpa);
  const char *value = text ? strstr(text, ") is 0x") : NULL;

  return value ? g_ascii_strtoull(value + strlen(") is "), NULL, 16) : 0;
}

/* The missing addresses of shared blocks, for a QEMU whose "info ramblock" has none. */
static gboolean
find_hvas(DrQmp *qmp, GPtrArray *blocks, GArray *hvas, GError **error)
{
  g_autofree char *mtree = NULL;

  for (guint i = 0; i < blocks->len; i++) {
    const DrRamBlock *block = g_ptr_array_index(blocks, i);
    guint64 gpa;

    if (g_array_index(hvas, guint64, i) || !block->in_use || block->kind == DR_RAM_ANONYMOUS)
      continue;
    if (!mtree && !(mtree = dr_qmp_hmp(qmp, error, "info mtree -f")))
      return FALSE;
    if (find_gpa(mtree, block->id, &gpa))
      g_array_index(hvas, guint64, i) = ask_hva(qmp, gpa);
  }
  return TRUE;
}

static DrRamKind
kind_of(const char *type, gboolean shared)
{
  if (shared && g_str_equal(type, "memory-backend-file"))
    return DR_RAM_SHARED_FILE;
  if (shared && (g_str_equal(type, "memory-backend-memfd") || g_str_equal(type, "memory-backend-shm")))
    return DR_RAM_SHARED_MEMFD;
  return DR_RAM_ANONYMOUS;
}

static DrRamBlock *
read_block(DrQmp *qmp, const char *id, guint64 size, GError **error)
{
  g_autoptr(DrRamBlock) block = g_new0(DrRamBlock, 1);
  g_autofree char *path = g_strconcat("/objects/", id, NULL);
  g_autofree char *type = dr_qmp_qom_str(qmp, path, "type", error);
  g_autoptr(JsonNode) share = type ? dr_qmp_qom_get(qmp, path, "share", error) : NULL;

  if (!share)
    return NULL;
  block->id = g_strdup(id);
  block->size = size;
  block->shared = JSON_NODE_HOLDS_VALUE(share) && json_node_get_boolean(share);
  block->kind = kind_of(type, block->shared);
  block->fd = -1;
  if (g_str_equal(type, "memory-backend-file") &&
      !(block->path = dr_qmp_qom_str(qmp, path, "mem-path", error)))
    return NULL;
  return g_steal_pointer(&block);
}

static int
compare_ids(gconstpointer a, gconstpointer b)
{
  const DrRamBlock *const *left = a, *const *right = b;

  return strcmp((*left)->id, (*right)->id);
}

static GPtrArray *
read_blocks(DrQmp *qmp, GError **error)
{
  g_autoptr(GPtrArray) blocks = g_ptr_array_new_with_free_func((GDestroyNotify)dr_ram_block_free);
  g_autoptr(JsonArray) memdevs = dr_qmp_call_array(qmp, "query-memdev", NULL, error);

  if (!memdevs)
    return NULL;
  for (guint i = 0; i < json_array_get_length(memdevs); i++) {
    JsonObject *memdev = json_array_get_object_element(memdevs, i);
    const char *id = dr_json_str(memdev, "id", NULL);
    DrRamBlock *block = id ? read_block(qmp, id, dr_json_int(memdev, "size", 0), error) : NULL;

    if (id && !block)
      return NULL;
    if (block)
      g_ptr_array_add(blocks, block);
  }
  g_ptr_array_sort(blocks, compare_ids);
  return g_steal_pointer(&blocks);
}

/* ---- What the kernel says ---- */

typedef struct {
  guint64 begin, end;
  guint64 device, inode;
  gboolean shared;
  const char *path; /* "" for anonymous memory */
} Mapping;

/* "7fc9-7fcd rw-s 00000000 00:01 2752       /memfd:name (deleted)" */
static gboolean
parse_mapping(char *line, Mapping *mapping)
{
  unsigned long long begin, end, inode;
  unsigned int major_number, minor_number;
  char flags[5];
  int path = 0;

  if (sscanf(line, "%llx-%llx %4s %*x %x:%x %llu %n", &begin, &end, flags, &major_number, &minor_number,
             &inode, &path) < 6)
    return FALSE;
  *mapping = (Mapping){ .begin = begin,
                        .end = end,
                        .device = makedev(major_number, minor_number),
                        .inode = inode,
                        .shared = flags[3] == 's',
                        .path = path ? line + path : "" };
  return TRUE;
}

/* Whether the file of a mapping is this descriptor's. The device number alone would fail on btrfs and overlayfs, where
 * maps and stat(2) differ. */
static gboolean
is_same_file(const Mapping *mapping, const DrProcFd *fd)
{
  return mapping->inode == fd->inode &&
         (mapping->device == fd->device || g_str_equal(mapping->path, fd->link));
}

/* The lowest one that refers to the file; -1 if none does. */
static int
find_fd(GPtrArray *fds, const Mapping *mapping)
{
  for (guint i = 0; i < fds->len; i++) {
    const DrProcFd *fd = g_ptr_array_index(fds, i);

    if (is_same_file(mapping, fd))
      return fd->fd;
  }
  return -1;
}

static void
match_fds(GPtrArray *blocks, GArray *hvas, char *maps, GPtrArray *fds)
{
  Mapping mapping;
  char *line;

  while ((line = strsep(&maps, "\n"))) {
    if (!parse_mapping(line, &mapping) || !mapping.shared || mapping.inode == 0)
      continue;
    for (guint i = 0; i < blocks->len; i++) {
      DrRamBlock *block = g_ptr_array_index(blocks, i);
      guint64 hva = g_array_index(hvas, guint64, i);

      if (block->kind != DR_RAM_ANONYMOUS && hva >= mapping.begin && hva < mapping.end)
        block->fd = find_fd(fds, &mapping);
    }
  }
}

/* A file whose pages could not be found by their address (the block is not mapped just now, or QEMU does not tell where): QEMU
 * keeps what it maps open, so a descriptor on the very file that the path leads to is the one. None: the file was replaced. */
static void
find_by_path(GPtrArray *blocks, GPtrArray *fds)
{
  for (guint i = 0; i < blocks->len; i++) {
    DrRamBlock *block = g_ptr_array_index(blocks, i);
    struct stat st;

    if (block->kind != DR_RAM_SHARED_FILE || block->fd >= 0 || !g_path_is_absolute(block->path) ||
        stat(block->path, &st) < 0 || !S_ISREG(st.st_mode))
      continue;
    for (guint n = 0; block->fd < 0 && n < fds->len; n++) {
      const DrProcFd *fd = g_ptr_array_index(fds, n);

      if (fd->inode == st.st_ino && fd->device == st.st_dev)
        block->fd = fd->fd;
    }
  }
}

static gboolean
find_fds(GPtrArray *blocks, GArray *hvas, const DrProcId *id, GError **error)
{
  g_autofree char *path = g_strdup_printf("/proc/%d/maps", (int)id->pid);
  g_autoptr(GPtrArray) fds = dr_proc_fds(id->pid, error);
  g_autofree char *maps = fds ? dr_file_read(path, MAX_MAPS, NULL, error) : NULL;

  if (!maps)
    return FALSE;
  match_fds(blocks, hvas, maps, fds);
  find_by_path(blocks, fds);
  return TRUE;
}

GPtrArray *
dr_memory_blocks(DrQmp *qmp, const DrProcId *id, GError **error)
{
  g_autoptr(GPtrArray) blocks = read_blocks(qmp, error);
  g_autofree char *ramblocks = blocks ? dr_qmp_hmp(qmp, error, "info ramblock") : NULL;
  g_autoptr(GArray) hvas = g_array_new(FALSE, TRUE, sizeof(guint64));

  if (!ramblocks)
    return NULL;
  g_array_set_size(hvas, blocks->len);
  take_ramblocks(blocks, hvas, ramblocks);
  if (!find_hvas(qmp, blocks, hvas, error) || !find_fds(blocks, hvas, id, error))
    return NULL;
  return g_steal_pointer(&blocks);
}

guint64
dr_memory_hugepage(void)
{
  g_autofree char *text = dr_file_read("/proc/meminfo", 65536, NULL, NULL);
  const char *line = text ? strstr(text, "\nHugepagesize:") : NULL;
  guint64 kib = line ? g_ascii_strtoull(line + strlen("\nHugepagesize:"), NULL, 10) : 0;

  return kib ? kib * 1024 : 2 << 20;
}

gboolean
dr_memory_has_userfaultfd(uid_t uid)
{
  g_autofree char *everybody = NULL;
  int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

  if (fd < 0)
    return FALSE;
  close(fd);
  if (uid == 0 || uid == geteuid())
    return TRUE;
  everybody = dr_file_read("/proc/sys/vm/unprivileged_userfaultfd", 16, NULL, NULL);
  return everybody && *everybody == '1';
}
