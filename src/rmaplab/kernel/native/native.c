// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Linux's own VMA layer as a library: address spaces whose system calls end in the tree's mm/vma.c.
 *
 * What is here is what stands above mm/vma.c in a kernel (the loops of mprotect, mlock and madvise, mremap's steps,
 * fork's and exit's) and below (anon_vmas), as thin as it can be.  run() does a batch of operations and compares the
 * result of each, and the VMAs after it, with what the caller expects; it stops at the first difference.
 *
 * Correspondence of objects (VMAs, anon_vmas, files) is one to one, by order of meeting: the caller's numbers are its
 * own.
 */

#include "shim.h"

#define EINVAL_ (-22L)

/* The tree's tests define these beside themselves; here they are ours. */
bool fail_prealloc;
int sysctl_max_map_count = 65530;
unsigned long mmap_min_addr = 65536, dac_mmap_min_addr = 65536;
unsigned long stack_guard_gap = 256UL << PAGE_SHIFT;
const struct vm_operations_struct vma_dummy_vm_ops;
static const struct vm_operations_struct file_ops;
static struct task_struct task;

struct task_struct *get_current(void)
{
	return &task;
}

unsigned long rlimit(unsigned int limit)
{
	return limit == RLIMIT_STACK ? 8UL << 20 : -1UL;
}

/* One to one correspondences. */

#define NUMBERS (1 << 20) /* objects of a kind in one history */

static unsigned int vma_to_caller[NUMBERS], vma_from_caller[NUMBERS];
static unsigned int next_vma = 1;
static void *anon_vma_from_caller[NUMBERS], *file_from_caller[NUMBERS];

/* anon_vmas (mm/rmap.c) */

static bool clone_reverses; /* anon_vma_clone() mirrors the chain (7.0 and newer) */

struct family_member {
	struct anon_vma base; /* what the tree's code sees */
	struct family_member *parent;
	unsigned long num_children, num_active_vmas, links;
	unsigned long refcount; /* of a root: members that are not freed */
	unsigned int caller; /* its number there; 0: not met */
};

static struct family_member *member(struct anon_vma *anon_vma)
{
	return container_of(anon_vma, struct family_member, base);
}

static struct family_member *new_member(void)
{
	struct family_member *new = calloc(1, sizeof(*new));

	new->base.root = &new->base;
	new->parent = new;
	return new;
}

/* Chains are kept newest first, as the kernel's. */
static void assign(struct vm_area_struct *vma, struct family_member *to)
{
	struct anon_vma_chain *avc = malloc(sizeof(*avc));

	avc->anon_vma = &to->base;
	list_add(&avc->same_vma, &vma->anon_vma_chain);
	to->links++;
}

int anon_vma_prepare(struct vm_area_struct *vma)
{
	struct anon_vma *found;
	struct family_member *own;

	if (vma->anon_vma)
		return 0;
	found = find_mergeable_anon_vma(vma);
	if (found) {
		own = member(found);
	} else {
		own = new_member();
		own->num_children = 1; /* itself */
	}
	vma->anon_vma = &own->base;
	assign(vma, own);
	own->num_active_vmas++;
	return 0;
}

static void maybe_take_over(struct vm_area_struct *dst, struct family_member *of)
{
	if (dst->anon_vma || of->num_active_vmas || of->num_children > 1)
		return;
	dst->anon_vma = &of->base;
	of->num_active_vmas++;
}

int anon_vma_clone(struct vm_area_struct *dst, struct vm_area_struct *src, enum vma_operation operation)
{
	struct anon_vma_chain *avc;

	if (!src->anon_vma)
		return 0;
	if (clone_reverses) {
		list_for_each_entry(avc, &src->anon_vma_chain, same_vma)
			assign(dst, member(avc->anon_vma));
		list_for_each_entry_reverse(avc, &dst->anon_vma_chain, same_vma)
			if (operation == VMA_OP_FORK)
				maybe_take_over(dst, member(avc->anon_vma));
	} else {
		list_for_each_entry_reverse(avc, &src->anon_vma_chain, same_vma) {
			assign(dst, member(avc->anon_vma));
			if (operation == VMA_OP_FORK)
				maybe_take_over(dst, member(avc->anon_vma));
		}
	}
	if (operation != VMA_OP_FORK)
		member(dst->anon_vma)->num_active_vmas++;
	return 0;
}

static void anon_vma_fork(struct vm_area_struct *vma, struct vm_area_struct *parent)
{
	struct family_member *own;

	vma->anon_vma = NULL;
	if (!parent->anon_vma)
		return;
	anon_vma_clone(vma, parent, VMA_OP_FORK);
	if (vma->anon_vma)
		return;
	own = new_member();
	own->base.root = parent->anon_vma->root;
	own->parent = member(parent->anon_vma);
	own->num_active_vmas = 1;
	own->parent->num_children++;
	vma->anon_vma = &own->base;
	assign(vma, own);
}

void unlink_anon_vmas(struct vm_area_struct *vma)
{
	struct anon_vma_chain *avc, *next;

	if (!vma->anon_vma)
		return;
	member(vma->anon_vma)->num_active_vmas--;
	list_for_each_entry(avc, &vma->anon_vma_chain, same_vma) {
		struct family_member *of = member(avc->anon_vma);

		if (--of->links == 0)
			of->parent->num_children--;
	}
	list_for_each_entry_safe(avc, next, &vma->anon_vma_chain, same_vma) {
		struct family_member *of = member(avc->anon_vma);

		list_del(&avc->same_vma);
		free(avc);
		/* Whoever is below it has links to it as well, so nobody points here any more. */
		if (of->links == 0) {
			if (of->caller && anon_vma_from_caller[of->caller] == of)
				anon_vma_from_caller[of->caller] = NULL;
			free(of);
		}
	}
	vma->anon_vma = NULL;
}

/* VMAs */

static void number(struct vm_area_struct *vma)
{
	/* A field that only the tree of a file's mappings would use. */
	vma->shared.rb_subtree_last = next_vma++ % NUMBERS;
}

struct vm_area_struct *vm_area_alloc(struct mm_struct *mm)
{
	struct vm_area_struct *vma = tree_vm_area_alloc(mm);

	number(vma);
	return vma;
}

struct vm_area_struct *vm_area_dup(struct vm_area_struct *orig)
{
	struct vm_area_struct *vma = tree_vm_area_dup(orig);

	number(vma);
	return vma;
}

/* What is freed was unmapped (free_pgtables() unlinks it first) or merged away. */
void vm_area_free(struct vm_area_struct *vma)
{
	unlink_anon_vmas(vma);
	tree_vm_area_free(vma);
}

/* Files */

struct mapped {
	struct file file;
	struct address_space mapping;
	unsigned int caller;
	unsigned long special; /* flags that its mmap handler adds */
	bool closes; /* its vm_operations have a close hook */
};

static void close_nothing(struct vm_area_struct *vma)
{
}

static const struct vm_operations_struct closing_ops = { .close = close_nothing };

static int prepare_file(struct vm_area_desc *desc)
{
	struct mapped *mapped = container_of(desc->file, struct mapped, file);

	desc->vm_ops = mapped->closes ? &closing_ops : &file_ops;
	desc->vma_flags.__vma_flags[0] |= mapped->special;
	return 0;
}

static const struct file_operations file_operations = { .mmap_prepare = prepare_file };

static struct file *new_file(void)
{
	struct mapped *mapped = calloc(1, sizeof(*mapped));

	mapped->file.f_mapping = &mapped->mapping;
	mapped->file.f_op = &file_operations;
	return &mapped->file;
}

int shmem_zero_setup(struct vm_area_struct *vma)
{
	vma->vm_file = new_file();
	vma->vm_ops = &file_ops;
	return 0;
}

#define FILES 4096
static struct file *files[FILES]; /* of the history, by number; the others belong to shared anonymous memory */

static struct file *file_of(long number)
{
	if (number < 0)
		return NULL;
	if (!files[number % FILES])
		files[number % FILES] = new_file();
	return files[number % FILES];
}

/* Address spaces */

#define SPACES 1024

struct space {
	struct mm_struct mm;
	unsigned long start_brk, brk;
};

static struct space *spaces[SPACES];

static struct space *new_space(void)
{
	struct space *space = calloc(1, sizeof(*space));

	mt_init_flags(&space->mm.mm_mt, MT_FLAGS_ALLOC_RANGE);
	/* Statistics are not compared: mprotect and fork do not keep them here, and they must not fall below 0. */
	space->mm.total_vm = space->mm.data_vm = space->mm.exec_vm = space->mm.stack_vm = 1UL << 40;
	return space;
}

static void drop_space(struct space *space)
{
	struct vm_area_struct *vma;
	VMA_ITERATOR(vmi, &space->mm, 0);

	for_each_vma(vmi, vma)
		unlink_anon_vmas(vma);
	vma_iter_set(&vmi, 0);
	for_each_vma(vmi, vma) {
		vma_mark_detached(vma);
		vm_area_free(vma);
	}
	__mt_destroy(&space->mm.mm_mt);
	free(space);
}

static struct vm_area_struct *vma_at_or_above(struct mm_struct *mm, unsigned long addr)
{
	unsigned long index = addr;

	return mt_find(&mm->mm_mt, &index, ULONG_MAX);
}

static struct vm_area_struct *vma_within(struct mm_struct *mm, unsigned long start, unsigned long end)
{
	struct vm_area_struct *vma = vma_at_or_above(mm, start);

	return vma && vma->vm_start < end ? vma : NULL;
}

static long unmap(struct mm_struct *mm, unsigned long start, unsigned long end)
{
	VMA_ITERATOR(vmi, mm, start);

	return start < end ? do_vmi_munmap(&vmi, mm, start, end - start, NULL, false) : 0;
}

/* mm_populate() */
static long populate(struct mm_struct *mm, unsigned long start, unsigned long end)
{
	struct vm_area_struct *vma;
	VMA_ITERATOR(vmi, mm, start);

	for_each_vma_range(vmi, vma, end) {
		if (vma->vm_flags & VM_SPECIAL)
			continue;
		if ((vma->vm_flags & VM_LOCKED_MASK) == VM_LOCKED_MASK)
			continue;
		if (!(vma->vm_flags & VM_ACCESS_FLAGS))
			return -EFAULT;
		if ((vma->vm_flags & (VM_WRITE | VM_SHARED)) == VM_WRITE)
			anon_vma_prepare(vma);
	}
	return 0;
}

static unsigned long mmap_flags(struct mm_struct *mm, unsigned long prot, unsigned long flags)
{
	return (prot & VM_ACCESS_FLAGS) | mm->def_flags | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC |
		(flags & 0x100 /* MAP_GROWSDOWN */ ? VM_GROWSDOWN : 0) |
		(flags & 0x2000 /* MAP_LOCKED */ ? VM_LOCKED : 0) |
		(flags & 0x4000 /* MAP_NORESERVE */ ? VM_NORESERVE : 0) |
		(flags & 0x20000 /* MAP_STACK */ ? VM_NOHUGEPAGE : 0);
}

/* do_mmap(), for a place that is known */
static long do_mmap(struct mm_struct *mm, unsigned long addr, unsigned long len, unsigned long prot,
		    unsigned long flags, long file, unsigned long pgoff)
{
	unsigned long vm_flags = mmap_flags(mm, prot, flags);
	bool shared = (flags & 0xf) != 2; /* MAP_PRIVATE */
	long result;

	if (shared)
		vm_flags |= VM_SHARED | VM_MAYSHARE;
	if (file < 0)
		pgoff = shared ? 0 : addr >> PAGE_SHIFT;
#ifdef HAVE_BITMAP_MMAP
	result = mmap_region(file_of(file), addr, len, legacy_to_vma_flags(vm_flags), pgoff, NULL);
#else
	result = mmap_region(file_of(file), addr, len, vm_flags, pgoff, NULL);
#endif
	if (result >= 0 && vm_flags & VM_LOCKED)
		populate(mm, addr, addr + len);
	return result;
}

static long change_flags(struct vma_iterator *vmi, struct vm_area_struct **prev, struct vm_area_struct *vma,
			 unsigned long start, unsigned long end, unsigned long flags)
{
	vma_flags_t new_flags = legacy_to_vma_flags(flags);

	vma = vma_modify_flags(vmi, *prev, vma, start, end, &new_flags);
	if (IS_ERR(vma))
		return PTR_ERR(vma);
	*prev = vma;
	vm_flags_reset(vma, vma_flags_to_legacy(new_flags));
	return 0;
}

static long mprotect_fixup(struct vma_iterator *vmi, struct vm_area_struct *vma, struct vm_area_struct **prev,
			   unsigned long start, unsigned long end, unsigned long flags)
{
	struct mm_struct *mm = vma->vm_mm;
	unsigned long old = vma->vm_flags;
	long error;

	if (flags == old) {
		*prev = vma;
		return 0;
	}
	if (flags & VM_WRITE) {
		if (!(old & (VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE)))
			flags |= VM_ACCOUNT;
	} else if (old & VM_ACCOUNT && vma_is_anonymous(vma) && !vma->anon_vma) {
		flags &= ~VM_ACCOUNT;
	}
	error = change_flags(vmi, prev, vma, start, end, flags);
	if (!error && (old & (VM_WRITE | VM_SHARED | VM_LOCKED)) == VM_LOCKED && flags & VM_WRITE)
		populate(mm, start, end);
	return error;
}

static long do_mprotect(struct mm_struct *mm, unsigned long start, unsigned long len, unsigned long prot)
{
	unsigned long end = start + len, at, from = start;
	struct vm_area_struct *vma, *prev;
	VMA_ITERATOR(vmi, mm, start);
	long error = 0;

	vma = vma_find(&vmi, end);
	if (!vma || vma->vm_start > start)
		return -ENOMEM;
	prev = vma_prev(&vmi);
	if (start > vma->vm_start)
		prev = vma;
	at = vma->vm_start;
	for_each_vma_range(vmi, vma, end) {
		unsigned long flags;

		if (vma->vm_start != at)
			return -ENOMEM;
		flags = prot | (vma->vm_flags & ~VM_ACCESS_FLAGS);
		if (flags & ~(flags >> 4) & VM_ACCESS_FLAGS)
			return -EACCES;
		at = min(vma->vm_end, end);
		error = mprotect_fixup(&vmi, vma, &prev, from, at, flags);
		if (error)
			return error;
		at = from = vma_iter_end(&vmi);
	}
	return at < end ? -ENOMEM : 0;
}

static long mlock_fixup(struct vma_iterator *vmi, struct vm_area_struct *vma, struct vm_area_struct **prev,
			unsigned long start, unsigned long end, unsigned long flags)
{
	struct mm_struct *mm = vma->vm_mm;
	unsigned long old = vma->vm_flags, pages = (end - start) >> PAGE_SHIFT;
	long error;

	if (flags == old || !vma_supports_mlock(vma)) {
		*prev = vma;
		return 0;
	}
	error = change_flags(vmi, prev, vma, start, end, flags);
	if (error) {
		*prev = vma;
		return error;
	}
	if (!(flags & VM_LOCKED))
		mm->locked_vm -= pages;
	else if (!(old & VM_LOCKED))
		mm->locked_vm += pages;
	return 0;
}

static long do_mlock(struct mm_struct *mm, unsigned long start, unsigned long len, unsigned long flags)
{
	unsigned long end = start + len, at, from = start;
	struct vm_area_struct *vma, *prev;
	VMA_ITERATOR(vmi, mm, start);
	long error;

	vma = vma_iter_load(&vmi);
	if (!vma)
		return -ENOMEM;
	prev = vma_prev(&vmi);
	if (start > vma->vm_start)
		prev = vma;
	at = start;
	for_each_vma_range(vmi, vma, end) {
		if (vma->vm_start != at && vma->vm_start > from)
			return -ENOMEM;
		at = min(vma->vm_end, end);
		error = mlock_fixup(&vmi, vma, &prev, from, at, (vma->vm_flags & ~VM_LOCKED_MASK) | flags);
		if (error)
			return error;
		at = from = vma_iter_end(&vmi);
	}
	if (at < end)
		return -ENOMEM;
	if (flags) {
		error = populate(mm, start, end);
		if (error)
			return error == -EFAULT ? -ENOMEM : error;
	}
	return 0;
}

static long do_mlockall(struct mm_struct *mm, unsigned long how)
{
	unsigned long to_add = how & 4 /* MCL_ONFAULT */ ? VM_LOCKED_MASK : VM_LOCKED;
	struct vm_area_struct *vma, *prev = NULL;
	VMA_ITERATOR(vmi, mm, 0);

	mm->def_flags &= ~VM_LOCKED_MASK;
	if (how & 2 /* MCL_FUTURE */)
		mm->def_flags |= to_add;
	if (how && !(how & 1 /* MCL_CURRENT */))
		return 0;
	for_each_vma(vmi, vma) {
		unsigned long flags = (vma->vm_flags & ~VM_LOCKED_MASK) | (how ? to_add : 0);

		mlock_fixup(&vmi, vma, &prev, vma->vm_start, vma->vm_end, flags);
	}
	if (how) {
		vma_iter_set(&vmi, 0);
		for_each_vma(vmi, vma)
			populate(mm, vma->vm_start, vma->vm_end);
	}
	return 0;
}

static long advised_flags(struct vm_area_struct *vma, unsigned long advice, unsigned long *flags)
{
	unsigned long old = vma->vm_flags;

	switch (advice) {
	case 0: /* MADV_NORMAL */
		*flags = old & ~(VM_RAND_READ | VM_SEQ_READ);
		return 0;
	case 1: /* MADV_RANDOM */
		*flags = (old & ~VM_SEQ_READ) | VM_RAND_READ;
		return 0;
	case 2: /* MADV_SEQUENTIAL */
		*flags = (old & ~VM_RAND_READ) | VM_SEQ_READ;
		return 0;
	case 10: /* MADV_DONTFORK */
		*flags = old | VM_DONTCOPY;
		return 0;
	case 11: /* MADV_DOFORK */
		*flags = old & ~VM_DONTCOPY;
		return 0;
	case 14: /* MADV_HUGEPAGE */
		*flags = (old & ~VM_NOHUGEPAGE) | VM_HUGEPAGE;
		return 0;
	case 15: /* MADV_NOHUGEPAGE */
		*flags = (old & ~VM_HUGEPAGE) | VM_NOHUGEPAGE;
		return 0;
	case 16: /* MADV_DONTDUMP */
		*flags = old | VM_DONTDUMP;
		return 0;
	case 17: /* MADV_DODUMP */
		*flags = old & ~VM_DONTDUMP;
		return 0;
	case 18: /* MADV_WIPEONFORK */
		if (vma->vm_file || old & VM_SHARED)
			return -EINVAL;
		*flags = old | VM_WIPEONFORK;
		return 0;
	case 19: /* MADV_KEEPONFORK */
		*flags = old & ~VM_WIPEONFORK;
		return 0;
	}
	return -EINVAL;
}

/* madvise_walk_vmas() */
static long do_madvise(struct mm_struct *mm, unsigned long start, unsigned long len, unsigned long advice)
{
	unsigned long end = start + len;
	struct vm_area_struct *vma, *prev;
	long error, missing = 0;

	if (start == end)
		return 0;
	vma = find_vma_prev(mm, start, &prev);
	if (vma && start > vma->vm_start)
		prev = vma;
	for (;;) {
		unsigned long stop, flags = 0;

		if (!vma)
			return -ENOMEM;
		if (start < vma->vm_start) {
			missing = -ENOMEM;
			start = vma->vm_start;
			if (start >= end)
				return missing;
		}
		stop = min(vma->vm_end, end);
		error = advised_flags(vma, advice, &flags);
		if (error)
			return error;
		if (flags == vma->vm_flags) {
			prev = vma;
		} else {
			VMA_ITERATOR(vmi, mm, start);

			error = change_flags(&vmi, &prev, vma, start, stop, flags);
			if (error)
				return error == -ENOMEM ? -EAGAIN : error;
		}
		start = max(stop, prev->vm_end);
		if (start >= end)
			return missing;
		vma = vma_at_or_above(mm, start);
	}
}

static long do_brk(struct space *space, unsigned long addr)
{
	struct mm_struct *mm = &space->mm;
	unsigned long new_end = PAGE_ALIGN(addr), old_end = PAGE_ALIGN(space->brk);
	struct vm_area_struct *vma, *next;
	VMA_ITERATOR(vmi, mm, 0);

	if (addr < space->start_brk)
		return space->brk;
	if (new_end == old_end)
		return space->brk = addr;
	if (addr <= space->brk) {
		if (!vma_within(mm, new_end, old_end) || unmap(mm, new_end, old_end))
			return space->brk;
		return space->brk = addr;
	}
	if (addr >= TASK_SIZE)
		return space->brk;
	next = vma_at_or_above(mm, old_end);
	if (next && new_end + PAGE_SIZE > vm_start_gap(next))
		return space->brk;
	vma_iter_set(&vmi, old_end);
	vma = vma_prev(&vmi);
	if (do_brk_flags(&vmi, vma, old_end, new_end - old_end, EMPTY_VMA_FLAGS) < 0)
		return space->brk;
	space->brk = addr;
	if (mm->def_flags & VM_LOCKED)
		populate(mm, old_end, new_end);
	return addr;
}

/* mm/mremap.c */

#define MAYMOVE 1
#define FIXED 2
#define DONTUNMAP 4

static bool move_many, dontunmap_refreshes, dontunmap_apart;

static long check_resize(struct vm_area_struct *vma, unsigned long addr, unsigned long old, unsigned long new,
			 unsigned long flags)
{
	if (!old && !(vma->vm_flags & (VM_SHARED | VM_MAYSHARE)))
		return -EINVAL;
	if (flags & DONTUNMAP && vma->vm_flags & (VM_DONTEXPAND | VM_PFNMAP))
		return -EINVAL;
	if (old > vma->vm_end - addr)
		return -EFAULT;
	return 0;
}

static struct vm_area_struct *call_copy_vma(struct vm_area_struct **vma, unsigned long addr, unsigned long to,
					    unsigned long len, unsigned long flags)
{
	unsigned long pgoff = (*vma)->vm_pgoff + ((addr - (*vma)->vm_start) >> PAGE_SHIFT);
	bool locks;

#ifdef HAVE_ANON_PGOFF
	return copy_vma(vma, to, len, pgoff, __linear_anon_page_index(*vma, addr), &locks,
			flags & DONTUNMAP);
#elif defined(HAVE_KEEP_SOURCE)
	return copy_vma(vma, to, len, pgoff, &locks, flags & DONTUNMAP);
#else
	return copy_vma(vma, to, len, pgoff, &locks);
#endif
}

static void dontunmap_complete(struct vm_area_struct *vma, unsigned long addr, unsigned long len)
{
	vm_flags_clear(vma, VM_LOCKED_MASK);
	if (vma->vm_start != addr || vma->vm_end != addr + len)
		return;
	unlink_anon_vmas(vma);
#ifdef HAVE_ANON_PGOFF
	vma_set_anon_pgoff(vma, addr >> PAGE_SHIFT);
#endif
	if (dontunmap_refreshes && vma_is_anonymous(vma) && !vma->vm_file)
		vma->vm_pgoff = addr >> PAGE_SHIFT;
}

static long move_vma(struct mm_struct *mm, struct vm_area_struct *vma, unsigned long addr, unsigned long old,
		     unsigned long new, unsigned long to, unsigned long flags)
{
	unsigned long vm_flags = vma->vm_flags;
	struct vm_area_struct *new_vma;

	if (mm->map_count >= sysctl_max_map_count - 3)
		return -ENOMEM;
	if (flags & DONTUNMAP && vm_flags & VM_LOCKED && dontunmap_apart) {
		VMA_ITERATOR(vmi, mm, addr);

		if (vma->vm_start != addr)
			split_vma(&vmi, vma, addr, 1);
		if (vma->vm_end != addr + old)
			split_vma(&vmi, vma, addr + old, 0);
	}
	vma_start_write(vma);
	new_vma = call_copy_vma(&vma, addr, to, new, flags);
	if (!new_vma)
		return -ENOMEM;
	if (flags & DONTUNMAP) {
		dontunmap_complete(vma, addr, old);
	} else {
		unmap(mm, addr, addr + old);
		if (vm_flags & VM_LOCKED)
			mm->locked_vm += new >> PAGE_SHIFT;
	}
	return to;
}

static long mremap_to(struct mm_struct *mm, unsigned long addr, unsigned long old, unsigned long new,
		      unsigned long flags, unsigned long to)
{
	struct vm_area_struct *vma = vma_lookup(mm, addr);
	long error;

	if (!vma)
		return -EFAULT;
	error = check_resize(vma, addr, min(old, new), new, flags);
	if (error)
		return error;
	if (flags & FIXED) {
		if (to < mmap_min_addr)
			return -EINVAL;
		error = unmap(mm, to, to + new);
		if (error)
			return error;
	}
	if (old > new) {
		error = unmap(mm, addr + new, addr + old);
		if (error)
			return error;
		old = new;
	}
	vma = vma_lookup(mm, addr);
	if (!vma)
		return -EFAULT;
	error = check_resize(vma, addr, old, new, flags);
	return error ? error : move_vma(mm, vma, addr, old, new, to, flags);
}

static long remap_many(struct mm_struct *mm, unsigned long addr, unsigned long len, unsigned long flags,
		       unsigned long to)
{
	unsigned long at = addr, end = addr + len;

	while (at < end) {
		struct vm_area_struct *vma = vma_at_or_above(mm, at);
		unsigned long start, stop;
		long result;

		if (!vma || vma->vm_start >= end)
			break;
		if (vma->vm_start > addr && at == addr)
			return -EFAULT;
		start = max(at, vma->vm_start);
		stop = min(end, vma->vm_end);
		result = mremap_to(mm, start, stop - start, stop - start, flags, to + start - addr);
		if (result < 0)
			return result;
		at = stop;
	}
	return at > addr ? (long)to : -EFAULT;
}

/* `place`: where the mapping goes if the kernel has the choice */
static long mremap(struct mm_struct *mm, unsigned long addr, unsigned long old, unsigned long new,
		   unsigned long flags, unsigned long to, unsigned long place)
{
	struct vm_area_struct *vma;
	long error;

	if ((flags & FIXED && !(flags & MAYMOVE)) || (flags & DONTUNMAP && (!(flags & MAYMOVE) || old != new)))
		return -EINVAL;
	if (!new)
		return -EINVAL;
	if (flags & (FIXED | DONTUNMAP) && ((addr + old > to && to + new > addr) || to & ~PAGE_MASK))
		return -EINVAL;
	if (flags & FIXED && old == new && move_many)
		return remap_many(mm, addr, old, flags, to);
	vma = vma_lookup(mm, addr);
	if (!vma)
		return -EFAULT;
	if (flags & (FIXED | DONTUNMAP))
		return mremap_to(mm, addr, old, new, flags, flags & FIXED ? to : place);
	if (old >= new) {
		error = old > new ? unmap(mm, addr + new, addr + old) : 0;
		return error ? error : (long)addr;
	}
	error = check_resize(vma, addr, old, new, flags);
	if (error)
		return error;
	if (old == vma->vm_end - addr && vma->vm_end + new - old <= TASK_SIZE &&
	    !vma_within(mm, vma->vm_end, vma->vm_end + new - old)) {
		VMA_ITERATOR(vmi, mm, vma->vm_end);

		vma = vma_merge_extend(&vmi, vma, new - old);
		if (!vma)
			return -ENOMEM;
		if (vma->vm_flags & VM_LOCKED)
			mm->locked_vm += (new - old) >> PAGE_SHIFT;
		return addr;
	}
	if (!(flags & MAYMOVE))
		return -ENOMEM;
	return move_vma(mm, vma, addr, old, new, place, flags);
}

static long do_mremap(struct mm_struct *mm, unsigned long addr, unsigned long old, unsigned long new,
		      unsigned long flags, unsigned long to, unsigned long place)
{
	long result = mremap(mm, addr, old, new, flags, to, place);

	if (result >= 0 && new > old && vma_lookup(mm, result)->vm_flags & VM_LOCKED)
		populate(mm, result + old, result + new);
	return result;
}

/* A touch of each page of a range (handle_mm_fault(), expand_stack()) */
static long do_touch(struct mm_struct *mm, unsigned long addr, unsigned long len, bool write)
{
	unsigned long end = addr + len;

	for (addr &= PAGE_MASK; addr < end;) {
		struct vm_area_struct *vma = vma_at_or_above(mm, addr);

		if (!vma)
			return -EFAULT;
		if (vma->vm_start > addr && (!(vma->vm_flags & VM_GROWSDOWN) || expand_downwards(vma, addr)))
			return -EFAULT;
		if (!(vma->vm_flags & (write ? VM_WRITE : VM_ACCESS_FLAGS)))
			return -EFAULT;
		if (write && !(vma->vm_flags & VM_SHARED))
			anon_vma_prepare(vma);
		addr = vma->vm_end;
	}
	return 0;
}

/* fs/exec.c: a stack of `arguments` bytes that ends at `old_end`, is moved down to end at `end`, and grows to `start` */
static long do_exec(struct space *space, unsigned long start, unsigned long end, unsigned long old_end,
		    unsigned long arguments, unsigned long start_brk)
{
	struct mm_struct *mm = &space->mm;
	struct vm_area_struct *vma = vm_area_alloc(mm);
	unsigned long at = old_end - arguments;

	task.mm = mm;
	vma_set_anonymous(vma);
	vma->vm_start = at;
	vma->vm_end = old_end;
	vm_flags_init(vma, VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_GROWSDOWN | VM_ACCOUNT);
	if (insert_vm_struct(mm, vma))
		return -ENOMEM;
	anon_vma_prepare(vma);
	if (old_end != end && relocate_vma_down(vma, old_end - end))
		return -ENOMEM;
	if (vma->vm_start > start && expand_downwards(vma, start))
		return -ENOMEM;
	space->start_brk = space->brk = start_brk;
	return 0;
}

/* dup_mmap() */
static long do_fork(struct space *parent, unsigned int child)
{
	struct space *new = spaces[child] = new_space();
	struct vm_area_struct *vma;
	VMA_ITERATOR(vmi, &parent->mm, 0);

	new->start_brk = parent->start_brk;
	new->brk = parent->brk;
	new->mm.def_flags = parent->mm.def_flags & VM_NOHUGEPAGE;
	for_each_vma(vmi, vma) {
		struct vm_area_struct *copy;

		if (vma->vm_flags & VM_DONTCOPY)
			continue;
		copy = vm_area_dup(vma);
		copy->vm_mm = &new->mm;
		if (vma->vm_flags & VM_WIPEONFORK)
			copy->anon_vma = NULL;
		else
			anon_vma_fork(copy, vma);
		vm_flags_clear(copy, VM_LOCKED_MASK);
		if (vma_link(&new->mm, copy))
			return -ENOMEM;
	}
	return 0;
}

/* The caller's side */

enum {
	EXEC, FORK, EXIT, MMAP, MUNMAP, MPROTECT, MADVISE, MLOCK, MLOCKALL, BRK, MREMAP, TOUCH, DESCRIBE_FILE,
};

struct operation {
	long what, space, args[6], result;
};

/* A VMA as the caller describes it; anon_vma and file: its numbers, 0 if there is none. */
struct expected {
	unsigned long start, end, pgoff, anon_pgoff, flags, vma, anon_vma, file;
};

static long do_operation(const struct operation *op)
{
	struct space *space = spaces[op->space];
	const long *args = op->args;
	struct mm_struct *mm;

	if (op->what == DESCRIBE_FILE) {
		struct mapped *mapped = container_of(file_of(args[0]), struct mapped, file);

		mapped->special = args[1];
		mapped->closes = args[2];
		return 0;
	}
	if (op->what == EXEC) {
		space = spaces[op->space] = new_space();
		return do_exec(space, args[0], args[1], args[2], args[3], args[4]);
	}
	mm = &space->mm;
	task.mm = mm;
	switch (op->what) {
	case FORK:
		return do_fork(space, args[0]);
	case EXIT:
		drop_space(space);
		spaces[op->space] = NULL;
		return 0;
	case MMAP:
		return do_mmap(mm, args[0], args[1], args[2], args[3], args[4], args[5]);
	case MUNMAP:
		return unmap(mm, args[0], args[0] + args[1]);
	case MPROTECT:
		return do_mprotect(mm, args[0], args[1], args[2]);
	case MADVISE:
		return do_madvise(mm, args[0], args[1], args[2]);
	case MLOCK:
		return do_mlock(mm, args[0], args[1], args[2]);
	case MLOCKALL:
		return do_mlockall(mm, args[0]);
	case BRK:
		return do_brk(space, args[0]);
	case MREMAP:
		return do_mremap(mm, args[0], args[1], args[2], args[3], args[4], args[5]);
	case TOUCH:
		return do_touch(mm, args[0], args[1], args[2]);
	}
	return EINVAL_;
}

static unsigned long anon_pgoff(const struct vm_area_struct *vma)
{
#ifdef HAVE_ANON_PGOFF
	return vma_start_anon_pgoff(vma);
#else
	return vma->vm_pgoff;
#endif
}

static void describe(const struct vm_area_struct *vma, struct expected *out)
{
	out->start = vma->vm_start;
	out->end = vma->vm_end;
	out->pgoff = vma->vm_pgoff;
	out->anon_pgoff = anon_pgoff(vma);
	out->flags = vma->vm_flags;
	out->vma = vma_to_caller[vma->shared.rb_subtree_last];
	out->anon_vma = vma->anon_vma ? member(vma->anon_vma)->caller : 0;
	out->file = vma->vm_file ? container_of(vma->vm_file, struct mapped, file)->caller : 0;
}

/* Whether the caller's number and the object of ours are each other's; they become so when both are new. */
static bool same_vma(const struct vm_area_struct *vma, unsigned int caller)
{
	unsigned int mine = vma->shared.rb_subtree_last;

	caller %= NUMBERS;
	if (!vma_to_caller[mine] && !vma_from_caller[caller]) {
		vma_to_caller[mine] = caller;
		vma_from_caller[caller] = mine;
	}
	return vma_to_caller[mine] == caller && vma_from_caller[caller] == mine;
}

static bool same_anon_vma(const struct vm_area_struct *vma, unsigned int caller)
{
	struct family_member *mine;

	if (!vma->anon_vma || !caller)
		return !vma->anon_vma && !caller;
	mine = member(vma->anon_vma);
	if (!mine->caller && !anon_vma_from_caller[caller % NUMBERS]) {
		mine->caller = caller % NUMBERS;
		anon_vma_from_caller[mine->caller] = mine;
	}
	return mine->caller == caller % NUMBERS && anon_vma_from_caller[mine->caller] == mine;
}

static bool same_file(const struct vm_area_struct *vma, unsigned int caller)
{
	struct mapped *mine;

	if (!vma->vm_file || !caller)
		return !vma->vm_file && !caller;
	mine = container_of(vma->vm_file, struct mapped, file);
	if (!mine->caller && !file_from_caller[caller % NUMBERS]) {
		mine->caller = caller % NUMBERS;
		file_from_caller[mine->caller] = mine;
	}
	return mine->caller == caller % NUMBERS && file_from_caller[mine->caller] == mine;
}

static bool same(struct space *space, const struct expected *expected, long count)
{
	struct vm_area_struct *vma;
	VMA_ITERATOR(vmi, &space->mm, 0);
	long i = 0;

	for_each_vma(vmi, vma) {
		const struct expected *its = &expected[i];

		if (i++ == count)
			return false;
		if (vma->vm_start != its->start || vma->vm_end != its->end || vma->vm_flags != its->flags ||
		    vma->vm_pgoff != its->pgoff)
			return false;
		if (anon_pgoff(vma) != its->anon_pgoff)
			return false;
		if (!same_vma(vma, its->vma) || !same_anon_vma(vma, its->anon_vma) || !same_file(vma, its->file))
			return false;
	}
	return i == count;
}

/* Forget everything: a new history begins. */
void reset(long reverses, long many, long refreshes, long apart)
{
	static bool begun;

	if (!begun) {
		maple_tree_init();
#ifdef HAVE_VMA_STATE_INIT
		vma_state_init();
#endif
		begun = true;
	}
	for (int i = 0; i < SPACES; i++) {
		if (spaces[i])
			drop_space(spaces[i]);
		spaces[i] = NULL;
	}
	memset(vma_to_caller, 0, sizeof(*vma_to_caller) * min(next_vma, (unsigned int)NUMBERS));
	memset(vma_from_caller, 0, sizeof(vma_from_caller));
	memset(anon_vma_from_caller, 0, sizeof(anon_vma_from_caller));
	memset(file_from_caller, 0, sizeof(file_from_caller));
	next_vma = 1;
	memset(files, 0, sizeof(files));
	clone_reverses = reverses;
	move_many = many;
	dontunmap_refreshes = refreshes;
	dontunmap_apart = apart;
}

/*
 * Do `count` operations.  counts[i] of the VMAs in `expected` describe the address space of operation i after it (-1:
 * it is gone).  Returns the number of operations that came out as expected; `result` is that of the last one done.
 */
long run(const struct operation *operations, long count, const long *counts, const struct expected *expected,
	 long *result)
{
	for (long i = 0; i < count; i++) {
		const struct operation *op = &operations[i];
		long space = op->what == FORK ? op->args[0] : op->space;

		*result = do_operation(op);
		if (*result != op->result)
			return i;
		if (counts[i] < 0)
			continue;
		if (!same(spaces[space], expected, counts[i]))
			return i;
		expected += counts[i];
	}
	return count;
}

/* The VMAs of an address space, at most `room` of them; returns how many there are. */
long look(long space, struct expected *out, long room)
{
	struct vm_area_struct *vma;
	long i = 0;

	if (!spaces[space])
		return -1;
	{
		VMA_ITERATOR(vmi, &spaces[space]->mm, 0);

		for_each_vma(vmi, vma) {
			if (i < room)
				describe(vma, &out[i]);
			i++;
		}
	}
	return i;
}
