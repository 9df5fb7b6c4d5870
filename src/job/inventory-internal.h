/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the parts of the inventory share: what was read, as it was read, and the small structs made of HMP's texts. */
#pragma once
#include "job/disk.h"
#include "job/inventory.h"

/* One device of `info qtree`: every device that sits on a bus, whoever created it. */
typedef struct DrQdev DrQdev;
struct DrQdev {
  char *type;
  char *id;          /* NULL: it has none */
  char *bus;         /* name of the bus it sits on ("pcie.0"), never NULL */
  DrQdev *parent;    /* the device that bus belongs to; NULL on the system bus */
  guint depth;       /* of its line in the text */
  GHashTable *props; /* name -> value as -device would take it: unquoted, numbers without QEMU's comments */
  char *pci;         /* "class …, addr 00:02.0, pci id 1af4:1000 (sub 1af4:0001)", or NULL */
  char *usb_port;    /* "1.2", or NULL */
};

/* One network endpoint of `info network`. */
typedef struct {
  char *name;  /* "u0", "#net189", "virtio-net-pci.0" */
  int index;   /* queue */
  char *type;  /* "nic", "user", "tap", "socket" … */
  char *info;  /* what is behind type=…, */
  char *mac;   /* of a NIC's first queue, else NULL */
  char *model; /* likewise */
  char *peer;  /* name of what it is connected to, or NULL; of hubs: the other endpoints are not peers */
  int hub;     /* -1: none */
} DrNet;

/* One entry of /machine/peripheral or /machine/peripheral-anon, and of /objects. */
typedef struct {
  char *name; /* the id, or "device[3]" */
  char *path;
  char *type;
  gboolean anon;
  gboolean hot; /* plugged in after this process started */
  GHashTable *
      props; /* nullable; name -> value as -device takes it, read one by one where qtree does not have them */
} DrPlugged;

typedef struct {
  char *name;
  guint64 used, total; /* bytes; a block whose two differ can grow when a stream says so */
} DrRam;

/* A node of the block graph. */
typedef struct {
  char *name; /* "file", "backing", "data-file" … */
  DrNode *node;
} DrEdge;
struct DrNode {
  const char *name;
  const char *driver;
  const char *file; /* QEMU's filename of it: a path, an URL or "json:{…}" */
  JsonObject *info; /* its entry of query-named-block-nodes */
  GArray *edges;    /* of DrEdge */
  gboolean alone;   /* see dr_inventory_stand_alone() */
};

struct DrInventory {
  int version; /* dr_qmp_version_number() */
  char *machine, *uuid, *name, *cpu;
  guint64 memory, plugged_memory;
  gboolean kvm, running;
  char *
      ram_backend; /* id of the object that is the machine's RAM, which QEMU makes by itself without one; nullable */
  JsonArray *cpus;       /* query-cpus-fast */
  JsonArray *features;   /* x86: feature-words of CPU 0; NULL elsewhere */
  GHashTable *cpu_props; /* of CPU 0: family, model-id … */
  JsonArray *memdevs, *dimms, *block, *nodes, *chardevs, *jobs, *exports, *tpms;
  JsonObject *graph; /* x-debug-query-block-graph, nullable */
  JsonObject *migrate;
  gboolean spice;
  GPtrArray *ram;     /* of DrRam */
  GPtrArray *qdevs;   /* of DrQdev, in the text's order */
  GPtrArray *plugged; /* of DrPlugged: devices of -device and device_add, in QEMU's order of creation */
  GPtrArray *objects; /* of DrPlugged: -object and object-add */
  GHashTable *types;  /* type name -> JsonArray of device-list-properties, of the plugged devices */
  GPtrArray *nets;    /* of DrNet */
  GPtrArray *forwards, *taps;
  GHashTable *block_nodes;    /* name -> DrNode */
  gboolean limits_by_command; /* see dr_inventory_limits_by_command() */
};

/* --- inventory.c --- */
GPtrArray *dr_plugged_list(void); /* empty, of DrPlugged */
/* A property's value as -device, -object and qtree write it; NULL for what is not a plain value. (transfer full) */
char *dr_value_text(JsonNode *node);
#define DR_VALUE_LIST "(a list)" /* what a property that holds a non-empty list reads as */

GHashTable *dr_props_new(void);
/* A refusal by QEMU is no error, and leaves *ret NULL: not every version and machine has every command and property. */
gboolean dr_ask_object(DrQmp *qmp, const char *command, JsonObject **ret, GError **error);
gboolean dr_ask_array(DrQmp *qmp, const char *command, JsonObject *arguments, JsonArray **ret,
                      GError **error);
gboolean dr_ask_property(DrQmp *qmp, const char *path, const char *property, JsonNode **ret, GError **error);
/* A property into props, if there is one with a plain value. */
gboolean dr_ask_into(DrQmp *qmp, const char *path, const char *property, GHashTable *props, GError **error);

/* --- inventory-plugged.c --- */
gboolean dr_read_devices(DrInventory *inventory, DrQmp *qmp, GError **error);
/* Names and types only, into inv->plugged. */
gboolean dr_list_plugged(DrInventory *inventory, DrQmp *qmp, GError **error);
gboolean dr_read_objects(DrInventory *inventory, DrQmp *qmp, GError **error);

/* --- inventory-qtree.c --- */
GPtrArray *dr_qtree_parse(const char *text); /* of DrQdev */
GPtrArray *dr_ram_parse(const char *text);   /* `info ramblock`: of DrRam */
DrQdev *dr_qtree_find(const DrInventory *inventory, const char *id);
/* The device of qtree that a plugged one is; for one without an id, one that cannot be told from it and is not in `taken`
 * (a set that grows; nullable). NULL: it sits on no bus. */
DrQdev *dr_qtree_find_plugged(const DrInventory *inventory, const DrPlugged *plugged, GHashTable *taken);
/* A property of the device or, for virtio-*-pci and the like, of the virtio device behind it. */
const char *dr_qdev_prop(const DrInventory *inventory, const DrQdev *dev, const char *name);
/* Its type under the name of today: "ICH9 SMB" is ICH9-SMB since 6.0, "acpi-ged-x86" is acpi-ged since 10.0. */
const char *dr_qdev_type(const DrQdev *dev);
/* "main-system-bus/q35-pcihost/pcie.0@02.0/rp0@00.0": where it sits, by address where its bus has addresses and else by
 * type; the same in every QEMU that has the same devices, but not always unique. */
char *dr_qdev_key(const DrQdev *dev);

/* --- inventory-net.c --- */
GPtrArray *dr_net_parse(const char *info_network);
GPtrArray *dr_taps_of(const GPtrArray *nets);
DrTap *dr_tap_find(const GPtrArray *taps, const char *netdev);
/* "tap0" for the key "ifname" of "…,type=tap,ifname=tap0,…"; NULL if it has none. (transfer full) */
char *dr_net_key(const DrNet *net, const char *key);
DrNet *dr_net_find(const DrInventory *inventory, const char *name);

/* --- inventory-graph.c --- */
GHashTable *dr_block_nodes(const DrInventory *inventory);
/* Of a running QEMU only the block layer and its jobs. */
DrInventory *dr_inventory_blocks(DrQmp *qmp, GError **error);
DrNode *dr_node_child(const DrNode *node, const char *edge);
/* The entry of query-block whose backend or qdev is this; NULL if there is none. */
JsonObject *dr_block_by_backend(const DrInventory *inventory, const char *backend);
JsonObject *dr_block_by_qdev(const DrInventory *inventory, const char *qdev);
DrNode *dr_block_root(const DrInventory *inventory, JsonObject *entry);

/* --- inventory-image.c --- */
/* Whether QEMU, given only the top of this chain, would open all of it by itself and find the same, names included. */
gboolean dr_chain_is_implicit(const DrNode *node, const char *cwd);

/* --- dr_inventory_apply() and its parts, which run in this order --- */
typedef struct {
  const DrInventory *inventory;
  DrArgv *argv;
  const char *cwd;
  DrFindings *findings;
  GHashTable *devices; /* DrOpt* of a -device -> DrPlugged*: which is which */
  GHashTable *taken;   /* of DrQdev*: those found to be a device without an id */
  GHashTable *wanted; /* of char*: "netdev:u1", "chardev:c0", "object:r0", what plugged-in devices refer to */
  GHashTable *seen;   /* JsonObject* of query-block: accounted for */
  GHashTable *placed; /* DrNode* -> char* name: has its -blockdev */
  GPtrArray *node_order; /* of DrOpt*: -blockdev, in an order in which each can be opened */
  const char *disk;      /* what is being looked at, for messages */
  guint made_up;         /* counts names */
  gboolean reordered;    /* a -blockdev refers to another than it did */
} DrApply;

void dr_apply_block(DrApply *a, const char *code, const char *remedy, const char *format, ...)
    G_GNUC_PRINTF(4, 5);

/* inventory-devices.c: which -device is which; unplugged ones go, plugged ones come; fills a->devices and a->wanted */
gboolean dr_apply_devices(DrApply *a, GError **error);
/* inventory-plug.c: one device that the command line does not have. */
void dr_plug_device(DrApply *a, const DrPlugged *plugged);
/* inventory-backends.c: netdevs, chardevs, objects */
gboolean dr_apply_backends(DrApply *a, GError **error);
/* inventory-disks.c */
gboolean dr_apply_disks(DrApply *a, GError **error);

/* --- inventory-chain.c: a running node as sub-options; each adds a blocker and returns FALSE where it cannot --- */
gboolean dr_node_is_plain_file(const DrNode *node); /* file, host_device, host_cdrom */
const char *dr_node_path(const DrNode *node);       /* of a plain file */
gboolean dr_node_is_export(const DrNode *node);     /* of an NBD server, by an URL */
void dr_note_export(DrApply *a, const DrNode *node);
/* Everything of `node` under `prefix` ("" or "backing."), children included. `parent` gives what it inherits. */
gboolean dr_spell_node(DrApply *a, DrOpts *opts, const char *prefix, DrNode *node, const DrNode *parent);
/* One child under prefix + edge, by reference if it has a name, else spelled. */
gboolean dr_place_child(DrApply *a, DrOpts *opts, const char *prefix, const char *edge, const DrNode *parent,
                        DrNode *child);
/* offset= and size= of a raw node, and a refusal for what else QEMU's json: filename has. */
gboolean dr_spell_strong_options(DrApply *a, DrOpts *opts, const char *prefix, const DrNode *node);
/* Sets detect-zeroes and cache.* under prefix where they differ from what would be without. */
void dr_spell_tuning(DrOpts *opts, const char *prefix, const DrNode *node, const DrNode *parent);

/* --- inventory-blockdev.c --- */
/* Makes sure that `node` has its -blockdev, as it runs. Returns: (transfer none) (nullable): its name; NULL with a blocker. */
const char *dr_blockdev_ensure(DrApply *a, DrNode *node);
void dr_blockdev_begin(DrApply *a);
gboolean dr_blockdev_finish(DrApply *a, GError **error);

/* --- inventory-drive.c --- */
typedef struct {
  DrOpt *opt;
  DrOpts *opts;  /* as -drive has them */
  char *backend; /* QEMU's name of it: "ide0-hd0", "virtio1", its id */
} DrDrive;
/* Every -drive, -hda, -cdrom … with the name QEMU gives it. Returns: (transfer full) (element-type DrDrive), NULL on error. */
GPtrArray *dr_drives_of(DrApply *a, GError **error);
/* "if=ide,index=2,media=cdrom" for "ide2-cd0": drives that a board has without being asked. (transfer full) (nullable) */
char *dr_drive_head_of_default(const DrInventory *inventory, const char *backend);

/* --- inventory-source.c: what a -drive names --- */
const char *dr_drive_format(const DrOpts *opts); /* nullable */
gboolean dr_drive_has_source(const DrOpts *opts);
/* FALSE also where it cannot be told. */
gboolean dr_drive_is_on(DrApply *a, const DrOpts *opts, const DrNode *top);

/* Whether the keys below `prefix` ("backing.") already say `node` and its chain. */
gboolean dr_drive_spells(DrApply *a, const DrOpts *opts, const char *prefix, const DrNode *node);

/* --- inventory-drive-apply.c --- */
/* Makes `drive` what runs as `entry` of query-block. */
void dr_drive_apply(DrApply *a, DrDrive *drive, JsonObject *entry);
/* A -drive for a backend that the command line does not have: `head` is "if=none,id=x". */
void dr_drive_add(DrApply *a, const char *head, const char *backend, JsonObject *entry);

/* --- inventory-throttle.c --- */
/* Makes the limits of a -drive those in force; `inserted` is of query-block. */
void dr_throttle_apply(DrOpts *opts, const char *backend, JsonObject *inserted);
gboolean dr_throttle_is_set(JsonObject *inserted);
gboolean dr_throttle_same(JsonObject *a, JsonObject *b); /* both are "inserted" */

/* --- inventory-compare.c, inventory-same.c --- */
void dr_inventory_compare_disks(const DrInventory *before, const DrInventory *after, DrFindings *findings);
void dr_compare_block(DrFindings *findings, const char *code, const char *format, ...) G_GNUC_PRINTF(3, 4);
void dr_same_devices(const DrInventory *before, const DrInventory *after, DrFindings *findings);
