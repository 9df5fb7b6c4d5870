/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A 512-byte guest for real KVM state: 32-bit protected mode, increments and checks the pages of 1 to 16 MiB. */

/*
 * What a test reads (physical addresses, QMP `pmemsave`, HMP `xp`, or the RAM file itself):
 *
 *   0x600  u32 magic 0x52565244 ("DRVR")
 *   0x604  u32 passes done
 *   0x608  u32 wrong pages seen
 *   0x60c  u32 address of the first wrong page
 *   0x610  u32 what it held   0x614  u32 what it should have held
 *
 * After each pass one byte goes to the serial port 0x3f8: '.' when all was right, '!' from the first wrong page on;
 * and the pass counter's low byte to port 0xe9 (isa-debugcon), when there is one.
 *
 * Each page holds its pass counter in the first word and counter + address in the last one.
 */

#define MAGIC   0x600
#define PASSES  0x604
#define WRONG   0x608
#define WHERE   0x60c
#define FOUND   0x610
#define WANTED  0x614
#define FIRST   0x100000
#define END     0x1000000
#define PAGE    4096

    .text
    .globl start
    .code16
start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    movw $0x2401, %ax           /* A20 on, through the BIOS */
    int $0x15
    cli
    lgdt gdt_pointer
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmp $8, $protected

    .code32
protected:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x7c00, %esp

    movl $0x52565244, MAGIC
    xorl %eax, %eax
    movl %eax, PASSES
    movl %eax, WRONG
    movl %eax, WHERE

    movl $FIRST, %edi           /* every page at pass 0 */
fill:
    movl $0, (%edi)
    movl %edi, PAGE - 4(%edi)
    addl $PAGE, %edi
    cmpl $END, %edi
    jb fill

pass:
    movl PASSES, %ebx           /* what each page holds now */
    leal 1(%ebx), %ecx          /* what it is to hold */
    movl $FIRST, %edi
page:
    movl (%edi), %eax
    movl %ebx, %edx
    cmpl %edx, %eax
    jne wrong
    movl PAGE - 4(%edi), %eax
    leal (%ebx, %edi), %edx
    cmpl %edx, %eax
    jne wrong
next:
    movl %ecx, (%edi)
    leal (%ecx, %edi), %edx
    movl %edx, PAGE - 4(%edi)
    addl $PAGE, %edi
    cmpl $END, %edi
    jb page

    movl %ecx, PASSES
    movb $'.', %al
    cmpl $0, WRONG
    je say
    movb $'!', %al
say:
    movw $0x3f8, %dx
    outb %al, %dx
    movb %cl, %al
    outb %al, $0xe9
    jmp pass

wrong:
    cmpl $0, WRONG
    jne counted
    movl %edi, WHERE
    movl %eax, FOUND
    movl %edx, WANTED
counted:
    incl WRONG
    jmp next

    .align 8
gdt:
    .quad 0
    .quad 0x00cf9a000000ffff    /* code, flat, 4 GiB */
    .quad 0x00cf92000000ffff    /* data, flat, 4 GiB */
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt

    .org 510
    .word 0xaa55
