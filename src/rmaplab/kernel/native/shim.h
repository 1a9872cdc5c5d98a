/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What stands between a tree's mm/vma.c and user space, on top of the tree's own tools/testing/vma.
 *
 * The tree's headers declare everything; what they stub and the outcome of a merge depends on is named away here and
 * defined below: anon_vmas above all, with the rules of mm/rmap.c (which of them, says the driver), the identity of
 * VMAs, mlock's idea of which VMAs it may lock, and the file behind shared anonymous memory.
 */
#ifndef RMAPLAB_SHIM_H
#define RMAPLAB_SHIM_H

#define CONFIG_MEM_SOFT_DIRTY 1
#define VMA_DATA_DEFAULT_FLAGS VMA_DATA_FLAGS_NON_EXEC /* x86: those of a task without READ_IMPLIES_EXEC */

#include "generated/bit-length.h"
#include "maple-shared.h"

#define unlink_anon_vmas tree_unlink_anon_vmas
#define anon_vma_clone tree_anon_vma_clone
#define __anon_vma_prepare tree_anon_vma_prepare_slow
#define anon_vma_prepare tree_anon_vma_prepare
#define vma_supports_mlock tree_vma_supports_mlock
#define move_page_tables tree_move_page_tables
#define shmem_zero_setup tree_shmem_zero_setup
#include "vma_internal.h"
#undef unlink_anon_vmas
#undef anon_vma_clone
#undef __anon_vma_prepare
#undef anon_vma_prepare
#undef vma_supports_mlock
#undef move_page_tables
#undef shmem_zero_setup

void unlink_anon_vmas(struct vm_area_struct *vma);
int anon_vma_clone(struct vm_area_struct *dst, struct vm_area_struct *src, enum vma_operation operation);
int anon_vma_prepare(struct vm_area_struct *vma);
int shmem_zero_setup(struct vm_area_struct *vma);

static inline bool vma_supports_mlock(const struct vm_area_struct *vma)
{
	return !(vma->vm_flags & (VM_SPECIAL | VM_DROPPABLE | VM_HUGETLB));
}

static inline unsigned long move_page_tables(struct pagetable_move_control *pmc)
{
	return pmc->len_in; /* all of it */
}

#include "mm/vma.h"

#ifndef HAVE_ANON_PGOFF /* then it is one of mm/internal.h, which is not here */
static inline void vma_set_range(struct vm_area_struct *vma, unsigned long start, unsigned long end, pgoff_t pgoff)
{
	vma->vm_start = start;
	vma->vm_end = end;
	vma->vm_pgoff = pgoff;
}
#endif

/* Each VMA gets a number of its own; they are made and freed here only. */
#define vm_area_alloc tree_vm_area_alloc
#define vm_area_dup tree_vm_area_dup
#define vm_area_free tree_vm_area_free
#include "mm/vma_init.c"
#undef vm_area_alloc
#undef vm_area_dup
#undef vm_area_free

struct vm_area_struct *vm_area_alloc(struct mm_struct *mm);
struct vm_area_struct *vm_area_dup(struct vm_area_struct *orig);
void vm_area_free(struct vm_area_struct *vma);

#include "mm/vma_exec.c"
#include "mm/vma.c"

#endif
