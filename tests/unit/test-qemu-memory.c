/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* RAM blocks of real QEMUs: what they are, and which descriptor is which. */
#include "test-qemu-util.h"
#include "qemu/memory.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#define MIB (1024 * 1024ull)

static const char *const versions[] = { "5.2", "7.2", "10.0", "11.1" };

typedef struct {
  const char *id;
  guint64 size;
  DrRamKind kind;
  gboolean in_use;
  const char *shared; /* NULL: as the kind says; otherwise "shared" */
  const char *file;   /* what its descriptor must be, a part of the link; NULL: it has none */
} Expected;

typedef struct {
  const char *name;
  const char *args; /* DIR: a directory in /dev/shm; FD: the number of a memfd of 64 MiB */
  Expected blocks[5];
} Case;

static const Case cases[] = {
  { "plain", "-m 64", { { "pc.ram", 64 * MIB, DR_RAM_ANONYMOUS, TRUE } } },
  { "plain-q35", "-M q35 -m 64", { { "pc.ram", 64 * MIB, DR_RAM_ANONYMOUS, TRUE } } },
  { "microvm", "-M microvm -m 64", { { "microvm.ram", 64 * MIB, DR_RAM_ANONYMOUS, TRUE } } },
  { "mem-path", "-m 64 -mem-path DIR", { { "pc.ram", 64 * MIB, DR_RAM_ANONYMOUS, TRUE } } },
  { "numa-ram",
    "-m 64 -object memory-backend-ram,id=m0,size=32M -object memory-backend-ram,id=m1,size=32M -smp 2 -numa "
    "node,memdev=m0,cpus=0 -numa node,memdev=m1,cpus=1",
    { { "m0", 32 * MIB, DR_RAM_ANONYMOUS, TRUE }, { "m1", 32 * MIB, DR_RAM_ANONYMOUS, TRUE } } },
  { "ram-shared",
    "-M q35,memory-backend=m0 -m 64 -object memory-backend-ram,id=m0,size=64M,share=on",
    { { "m0", 64 * MIB, DR_RAM_ANONYMOUS, TRUE, "shared" } } },
  { "inherited-memfd",
    "-M q35,memory-backend=pc.ram -m 64 -object "
    "memory-backend-file,id=pc.ram,size=64M,mem-path=/proc/self/fd/FD,share=on",
    { { "pc.ram", 64 * MIB, DR_RAM_SHARED_FILE, TRUE, NULL, "/memfd:drover:test:pc.ram" } } },
  { "inherited-memfd-private",
    "-M q35,memory-backend=pc.ram -m 64 -object "
    "memory-backend-file,id=pc.ram,size=64M,mem-path=/proc/self/fd/FD,share=off",
    { { "pc.ram", 64 * MIB, DR_RAM_ANONYMOUS, TRUE } } },
  { "file",
    "-M q35,memory-backend=pc.ram -m 64 -object "
    "memory-backend-file,id=pc.ram,size=64M,mem-path=DIR/ram,share=on",
    { { "pc.ram", 64 * MIB, DR_RAM_SHARED_FILE, TRUE, NULL, "/ram" } } },
  { "directories",
    "-m 64 -smp 2 -object memory-backend-file,id=m0,size=32M,mem-path=DIR,share=on -object "
    "memory-backend-file,id=m1,size=32M,mem-path=DIR,share=on -numa node,memdev=m0,cpus=0 -numa "
    "node,memdev=m1,cpus=1",
    { { "m0", 32 * MIB, DR_RAM_SHARED_FILE, TRUE, NULL, "qemu_back_mem.m0." },
      { "m1", 32 * MIB, DR_RAM_SHARED_FILE, TRUE, NULL, "qemu_back_mem.m1." } } },
  { "memfd",
    "-M pc,memory-backend=m0 -m 64 -object memory-backend-memfd,id=m0,size=64M",
    { { "m0", 64 * MIB, DR_RAM_SHARED_MEMFD, TRUE, NULL, "/memfd:memory-backend-memfd" } } },
  { "memfd-private",
    "-M pc,memory-backend=m0 -m 64 -object memory-backend-memfd,id=m0,size=64M,share=off",
    { { "m0", 64 * MIB, DR_RAM_ANONYMOUS, TRUE } } },
  { "canonical-path",
    "-M pc,memory-backend=m0 -m 64 -object "
    "memory-backend-memfd,id=m0,size=64M,x-use-canonical-path-for-ramblock-id=on",
    { { "m0", 64 * MIB, DR_RAM_SHARED_MEMFD, TRUE, NULL, "/memfd:memory-backend-memfd" } } },
  { "dimm",
    "-M q35,memory-backend=m0 -m 64M,slots=2,maxmem=1G -object memory-backend-memfd,id=m0,size=64M -object "
    "memory-backend-memfd,id=m1,size=128M -device pc-dimm,memdev=m1",
    { { "m0", 64 * MIB, DR_RAM_SHARED_MEMFD, TRUE, NULL, "/memfd:" },
      { "m1", 128 * MIB, DR_RAM_SHARED_MEMFD, TRUE, NULL, "/memfd:" } } },
  { "unused",
    "-m 64 -object memory-backend-memfd,id=m1,size=64M",
    { { "m1", 64 * MIB, DR_RAM_SHARED_MEMFD, FALSE }, { "pc.ram", 64 * MIB, DR_RAM_ANONYMOUS, TRUE } } },
};

static char *
replace(const char *text, const char *what, const char *with)
{
  g_auto(GStrv) parts = g_strsplit(text, what, -1);

  return g_strjoinv(with, parts);
}

static void
check_block(const TestQemu *qemu, const DrRamBlock *block, const Expected *expected)
{
  g_autoptr(GPtrArray) fds = dr_proc_fds(qemu->id.pid, NULL);

  g_assert_cmpstr(block->id, ==, expected->id);
  g_assert_cmpuint(block->size, ==, expected->size);
  g_assert_cmpint(block->kind, ==, expected->kind);
  g_assert_cmpint(block->in_use, ==, expected->in_use);
  g_assert_cmpint(block->shared, ==, expected->shared || expected->kind != DR_RAM_ANONYMOUS);
  g_assert_cmpuint(block->hugepage, ==, 0);
  g_assert_cmpint(block->fd >= 0, ==, expected->file != NULL);
  for (guint i = 0; i < fds->len; i++) {
    const DrProcFd *fd = g_ptr_array_index(fds, i);

    if (fd->fd == block->fd && !strstr(fd->link, expected->file))
      g_error("block '%s' is descriptor %d, %s", block->id, fd->fd, fd->link);
  }
}

static void
check_case(const Case *test, const char *version)
{
  g_autofree char *binary = qemu_find(version);
  auto_tmp char *dir = tmp_new();
  auto_tmp char *shm = g_strdup("/dev/shm/drover-test-XXXXXX");
  dr_autofd int memfd = dr_memory_create("test", "pc.ram", 64 * MIB, 0, NULL);
  g_autofree char *with_dir = g_mkdtemp(shm) ? replace(test->args, "DIR", shm) : NULL;
  g_autofree char *args = with_dir ? replace(with_dir, "FD", "20") : NULL;
  g_autoptr(TestQemu) qemu = args ? test_qemu_start(binary, dir, args, &memfd, (int[]){ 20 }, 1) : NULL;
  g_autoptr(GError) error = NULL;
  g_autoptr(GPtrArray) blocks = NULL;
  gint64 begin = g_get_monotonic_time();
  guint n = 0;

  g_assert_nonnull(qemu);
  blocks = dr_memory_blocks(qemu->qmp, &qemu->id, &error);
  g_test_message("%s on %s: %d us", test->name, version, (int)(g_get_monotonic_time() - begin));
  g_assert_no_error(error);
  while (n < G_N_ELEMENTS(test->blocks) && test->blocks[n].id)
    n++;
  g_assert_cmpuint(blocks->len, ==, n);
  for (guint i = 0; i < n; i++)
    check_block(qemu, g_ptr_array_index(blocks, i), &test->blocks[i]);
}

static void
test_case(gconstpointer data)
{
  guint done = 0;

  for (guint i = 0; i < G_N_ELEMENTS(versions); i++) {
    g_autofree char *binary = qemu_find(versions[i]);

    if (!binary)
      continue;
    check_case(data, versions[i]);
    done++;
  }
  if (done == 0)
    g_test_skip("no QEMU on this machine");
}

/* Four memfds of one size and one name: the descriptor of each must be the one that its guest memory is in. The proof:
 * what we write into it, QEMU sees at that guest address. */
static void
check_twins(const char *version)
{
  g_autofree char *binary = qemu_find(version);
  auto_tmp char *dir = tmp_new();
  g_autoptr(TestQemu) qemu = test_qemu_start(
      binary, dir,
      "-m 256 -smp 4 -object memory-backend-memfd,id=m0,size=64M -object memory-backend-memfd,id=m1,size=64M "
      "-object "
      "memory-backend-memfd,id=m2,size=64M,share=off -object memory-backend-memfd,id=m3,size=64M -numa "
      "node,memdev=m3,cpus=0 -numa node,memdev=m1,cpus=1 -numa node,memdev=m2,cpus=2 -numa "
      "node,memdev=m0,cpus=3",
      NULL, NULL, 0);
  static const guint64 places[] = { 3 * 64 * MIB, 64 * MIB, 2 * 64 * MIB, 0 };
  g_autoptr(GError) error = NULL;
  g_autoptr(GPtrArray) blocks = NULL;

  g_assert_nonnull(qemu);
  blocks = dr_memory_blocks(qemu->qmp, &qemu->id, &error);
  g_assert_no_error(error);
  g_assert_cmpuint(blocks->len, ==, 4);
  for (guint i = 0; i < 4; i++) {
    const DrRamBlock *block = g_ptr_array_index(blocks, i);
    g_autofree char *text = NULL, *expected = g_strdup_printf(": 0x%08x", 0xabcd0000u + i);
    dr_autofd int fd = -1;
    guint32 mark = 0xabcd0000u + i;

    g_assert_cmpint(block->fd >= 0, ==, i != 2);
    if (block->fd < 0)
      continue;
    fd = dr_proc_get_fd(&qemu->id, block->fd, &error);
    g_assert_no_error(error);
    g_assert_cmpint(pwrite(fd, &mark, sizeof mark, MIB * 8), ==, sizeof mark);
    text = dr_qmp_hmp(qemu->qmp, &error, "xp /1wx 0x%" G_GINT64_MODIFIER "x", (guint64)(places[i] + MIB * 8));
    g_assert_no_error(error);
    if (!strstr(text, expected))
      g_error("QEMU %s, block %s: %s", version, block->id, text);
  }
}

static void
test_twins(void)
{
  guint done = 0;

  for (guint i = 0; i < G_N_ELEMENTS(versions); i++) {
    g_autofree char *binary = qemu_find(versions[i]);

    if (!binary)
      continue;
    check_twins(versions[i]);
    done++;
  }
  if (done == 0)
    g_test_skip("no QEMU on this machine");
}

static void
test_create(void)
{
  g_autoptr(GError) error = NULL;
  g_autofree char *long_name = g_strnfill(300, 'n');
  dr_autofd int fd = dr_memory_create("web1", "pc.ram", 5000, 0, &error);
  dr_autofd int second = dr_memory_create(long_name, long_name, 4096, 0, &error);
  struct stat status;

  g_assert_no_error(error);
  g_assert_cmpint(fstat(fd, &status), ==, 0);
  g_assert_cmpint(status.st_size, ==, 8192);
  g_assert_cmpint(fcntl(fd, F_GETFD), ==, FD_CLOEXEC);
  g_assert_cmpint(ftruncate(fd, 0), ==, -1);
  g_assert_cmpint(ftruncate(fd, 1 << 20), ==, -1);
  g_assert_cmpint(dr_memory_create("web1", "pc.ram", 0, 0, &error), ==, -1);
  assert_error(&error, DR_ERROR_INVALID, "of 0 bytes");
  g_assert_cmpint(dr_memory_create("web1", "pc.ram", G_MAXUINT64, 0, &error), ==, -1);
  assert_error(&error, DR_ERROR_INVALID, "cannot make RAM block");
  g_assert_cmpint(dr_memory_create("web1", "pc.ram", MIB, 3000, &error), ==, -1);
  assert_error(&error, DR_ERROR_INVALID, "in pages of 3000");
  g_assert_cmpint(dr_memory_create("web1", "pc.ram", MIB, 1ull << 40, &error), ==, -1);
  assert_error(&error, DR_ERROR_IO, "cannot make");
}

#define NR_HUGEPAGES "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
#define HUGE (2 * MIB)

static guint64
read_number(const char *path)
{
  g_autofree char *text = dr_file_read(path, 64, NULL, NULL);

  return text ? g_ascii_strtoull(text, NULL, 10) : 0;
}

static gboolean
write_number(const char *path, guint64 number)
{
  g_autofree char *text = g_strdup_printf("%" G_GUINT64_FORMAT "\n", number);
  dr_autofd int fd = open(path, O_WRONLY | O_CLOEXEC);

  return fd >= 0 && write(fd, text, strlen(text)) == (gssize)strlen(text) && read_number(path) == number;
}

static void
check_hugepages(const char *version)
{
  g_autofree char *binary = qemu_find(version);
  auto_tmp char *dir = tmp_new();
  g_autoptr(GError) error = NULL;
  dr_autofd int memfd = dr_memory_create("test", "pc.ram", 64 * MIB - 1, HUGE, &error);
  g_autoptr(TestQemu) qemu = NULL;
  g_autoptr(GPtrArray) blocks = NULL;

  g_assert_no_error(error);
  qemu = test_qemu_start(binary, dir,
                         "-M q35,memory-backend=pc.ram -m 64M,slots=2,maxmem=1G -object "
                         "memory-backend-file,id=pc.ram,size=64M,mem-path=/proc/self/fd/20,share=on -object "
                         "memory-backend-memfd,id=m1,size=16M,hugetlb=on,hugetlbsize=2M,share=off -device "
                         "pc-dimm,memdev=m1",
                         &memfd, (int[]){ 20 }, 1);
  g_assert_nonnull(qemu);
  blocks = dr_memory_blocks(qemu->qmp, &qemu->id, &error);
  g_assert_no_error(error);
  g_assert_cmpuint(blocks->len, ==, 2);
  const DrRamBlock *m1 = g_ptr_array_index(blocks, 0), *main_block = g_ptr_array_index(blocks, 1);
  g_assert_cmpuint(m1->hugepage, ==, HUGE);
  g_assert_cmpint(m1->kind, ==, DR_RAM_ANONYMOUS);
  g_assert_cmpuint(main_block->hugepage, ==, HUGE);
  g_assert_cmpint(main_block->kind, ==, DR_RAM_SHARED_FILE);
  g_assert_cmpint(main_block->fd, >=, 0);
}

static void
test_hugepages(void)
{
  guint64 before = read_number(NR_HUGEPAGES);
  g_autoptr(GError) error = NULL;

  if (access(NR_HUGEPAGES, W_OK) < 0 || !write_number(NR_HUGEPAGES, before + 48)) {
    write_number(NR_HUGEPAGES, before);
    g_test_skip("no right to reserve huge pages, or no 96 MiB of them to be had");
    return;
  }
  for (guint i = 0; i < G_N_ELEMENTS(versions); i++) {
    g_autofree char *binary = qemu_find(versions[i]);

    if (binary)
      check_hugepages(versions[i]);
  }
  /* More than there is: refused now, and not by SIGBUS in the guest later. */
  g_assert_cmpint(dr_memory_create("web1", "pc.ram", (read_number(NR_HUGEPAGES) + 1) * HUGE, HUGE, &error),
                  ==, -1);
  g_assert_nonnull(strstr(dr_error_get_remedy(error), "hugepages-2048kB"));
  assert_error(&error, DR_ERROR_IO, "cannot make");
  wait_until(write_number(NR_HUGEPAGES, before));
}

int
main(int argc, char **argv)
{
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/qemu/memory/create", test_create);
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autofree char *path = g_strconcat("/qemu/memory/", cases[i].name, NULL);

    g_test_add_data_func(path, &cases[i], test_case);
  }
  g_test_add_func("/qemu/memory/twins", test_twins);
  g_test_add_func("/qemu/memory/hugepages", test_hugepages);
  return g_test_run();
}
