package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/imagefile"
	"github.com/sregistry/sregistry-fs/cache"
)

// Flush is where close(2) can still fail: a complete image is pushed, and
// close returns 0 only when the registry has acknowledged it. It runs once for
// every descriptor that is closed, also when the writer is being killed.
func (h *writeHandle) Flush(ctx context.Context) syscall.Errno {
	if !h.writes {
		return 0
	}
	n := h.n
	caller, _ := fuse.FromContext(ctx)
	n.mu.Lock()
	pending := n.isImage() && !n.gone && n.published == nil && n.changed > 0
	ref := n.ref
	n.mu.Unlock()
	if !pending {
		return 0
	}
	if caller != nil && diedBySignal(caller.Pid) {
		n.m.log.Warn("the writer was killed; nothing is pushed, what it wrote stays staged", "image", ref.String(), "pid", caller.Pid)
		n.mu.Lock()
		n.killed = true
		n.mu.Unlock()
		return syscall.EINTR
	}
	wait, cancel := n.m.killable(ctx, 0)
	defer cancel()
	// The push outlives a caller that is killed meanwhile: it was begun on
	// complete bytes.
	var errno syscall.Errno
	if err := await(wait, func() error { errno = n.publish(n.m.life); return nil }); err != nil {
		return Errno(err)
	}
	return errno
}

// publish pushes the file if it is a complete image and reports how that
// went; an incomplete one is 0 and is looked at again at the next flush. The
// same bytes are tried once: further descriptors that close get the same answer.
func (n *stageNode) publish(ctx context.Context) syscall.Errno {
	n.publishing.Lock()
	defer n.publishing.Unlock()
	n.mu.Lock()
	if n.published != nil || n.gone || !n.isImage() || n.staged == nil {
		n.mu.Unlock()
		return 0
	}
	if n.tried == n.changed && n.tried > 0 {
		defer n.mu.Unlock()
		return n.triedErr
	}
	ref, staged, changed := n.ref, n.staged, n.changed
	n.mu.Unlock()

	complete, err := n.m.check(ref, staged)
	if err == nil && !complete {
		n.m.log.Info("the image is not complete yet; nothing is pushed", "image", ref.String(), "bytes", staged.Size())
		return 0
	}
	var rec backends.Record
	if err == nil {
		n.setPushing(true)
		n.m.keepForReaders(ctx, ref)
		rec, err = n.m.cache.Push(ctx, staged, ref, nil)
		n.setPushing(false)
	}
	n.mu.Lock()
	n.tried = changed
	n.triedErr = 0
	if err == nil {
		n.published = &rec
	}
	n.mu.Unlock()
	if err != nil {
		errno := n.m.fail("push", ref, err)
		n.mu.Lock()
		defer n.mu.Unlock()
		n.triedErr = errno
		return errno
	}
	n.m.removeLocal(n)
	n.m.log.Info("pushed", "image", rec.Ref.String(), "bytes", staged.Size())
	return 0
}

// keepForReaders completes the image that a push is about to replace if
// somebody has it open: afterwards the registry no longer has the bytes that they have
// not read yet. Without success the push goes on, and those readers get ESTALE.
func (m *mount) keepForReaders(ctx context.Context, ref backends.Ref) {
	m.mu.Lock()
	n := m.images[ref]
	m.mu.Unlock()
	if n == nil || !n.latch.inUse() {
		return
	}
	rec := n.record()
	if _, _, ok := m.cache.Store.Cached(rec); ok {
		return
	}
	blob, err := m.cache.Store.Open(ctx, rec)
	if err == nil {
		err = errors.Join(blob.Wait(ctx, nil), blob.Close())
	}
	if err != nil {
		m.log.Warn("an image that is being read was not completed before it is replaced", "image", ref.String(), "error", err)
	}
}

func (n *stageNode) setPushing(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pushing = on
}

// check tells whether the staged bytes are a complete image, or refuses them
// because they are none.
func (m *mount) check(ref backends.Ref, staged *cache.Staged) (complete bool, err error) {
	info, err := imagefile.Identify(staged, staged.Size())
	switch {
	case m.opts.AnyFile && (err != nil || info.Kind == imagefile.Unknown):
		return staged.Size() > 0, nil
	case err != nil:
		e := backends.Errorf("push", ref, backends.Invalid, "%w", err)
		e.Hint = "only SIF, squashfs and ext3 images are pushed; mount with --any-file to push other files too"
		return false, e
	}
	return info.Complete, nil
}

// Release lets a descriptor go. With the last one, what was not published is
// either kept in the stage, with the reason, or dropped if it can never be an image.
func (h *writeHandle) Release(context.Context) syscall.Errno {
	n := h.n
	n.mu.Lock()
	n.readers--
	if h.writes {
		n.writers--
	}
	last := n.readers == 0
	n.mu.Unlock()
	if last {
		n.retire()
	}
	n.m.opened(-1)
	return 0
}

// retire settles a file that nobody has open any more.
func (n *stageNode) retire() {
	n.publishing.Lock()
	defer n.publishing.Unlock()
	n.mu.Lock()
	if n.readers > 0 || n.staged == nil {
		n.mu.Unlock()
		return
	}
	staged, ref := n.staged, n.ref
	keep := n.changed > 0 && !n.gone && n.published == nil
	if !n.isImage() && !n.gone {
		n.mu.Unlock()
		return // scratch stays until it is renamed, unlinked or aged out
	}
	if n.changed == 0 && n.base == nil && !n.gone {
		n.mu.Unlock()
		return // new and empty: touch(1); a later open may fill it
	}
	n.staged = nil
	refused := n.triedErr == syscall.EINVAL
	tried := n.tried == n.changed
	reason := fmt.Errorf("the image is incomplete: %d bytes were written", staged.Size())
	if n.killed {
		reason = fmt.Errorf("the writer was killed after %d bytes", staged.Size())
	}
	n.mu.Unlock()

	n.m.removeLocal(n)
	n.m.track(n, false)
	var err error
	switch {
	case !keep:
		err = dropIfAny(staged)
	case refused, staged.Size() == 0:
		err = staged.Drop()
	default:
		if !tried {
			err = staged.Fail(reason)
		}
		n.m.log.Warn("not pushed; the bytes stay in the stage", "image", ref.String(), "staged", staged.Path())
	}
	if err = errors.Join(err, staged.Close()); err != nil {
		n.m.log.Warn("the stage could not be tidied", "image", ref.String(), "error", err)
	}
}

func dropIfAny(staged *cache.Staged) error {
	if err := staged.Drop(); err != nil && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	return nil
}

// discard is unlink of a file that exists only here.
func (n *stageNode) discard() {
	n.m.removeLocal(n)
	n.mu.Lock()
	n.gone = true
	idle := n.readers == 0
	n.mu.Unlock()
	if idle {
		n.retire()
	}
}

// Rename renames within this mount, publishes scratch that gets an image's
// name, or moves an image in the registry where it can. Anything else is
// EXDEV, so that mv copies and deletes.
func (d *collectionNode) Rename(ctx context.Context, name string, newParent fusefs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	const noReplace = 1 // RENAME_NOREPLACE of renameat2(2)
	to, ok := newParent.(*collectionNode)
	if !ok || flags&^uint32(noReplace) != 0 {
		return syscall.EINVAL
	}
	if errno := d.m.mayChange(nil); errno != 0 {
		return errno
	}
	if local := d.m.localFile(d.name, name); local != nil {
		return d.renameLocal(ctx, local, to, newName, flags&noReplace != 0)
	}
	if isScratch(newName) {
		return syscall.EXDEV
	}
	wait, cancel := d.m.killable(ctx, listLimit)
	defer cancel()
	rec, err := d.find(wait, name)
	if errors.Is(err, backends.NotFound) {
		return syscall.EXDEV // a directory: mv makes the new one and moves what is in it
	}
	if err != nil {
		return d.m.fail("rename", backends.Ref{Collection: d.name, Image: name}, err)
	}
	if errno := d.m.mayChange(&rec); errno != 0 {
		return errno
	}
	ref, errno := to.imageName("rename", newName)
	if errno != 0 {
		return errno
	}
	if ref == rec.Ref {
		return 0
	}
	if errno := to.mayReplace(wait, ref, flags&noReplace != 0); errno != 0 {
		return errno
	}
	err = await(wait, func() error { _, err := d.m.cache.Catalog.Move(d.m.life, rec, ref); return err })
	if errors.Is(err, backends.Unsupported) {
		return syscall.EXDEV
	}
	return d.m.fail("rename", rec.Ref, err)
}

// imageName reads a name that an image is to get.
func (d *collectionNode) imageName(op, name string) (backends.Ref, syscall.Errno) {
	all := targets(d.name, name)
	if len(all) == 0 || all[0].version != "" {
		where := backends.Ref{Collection: d.name}
		return backends.Ref{}, d.m.fail(op, where, backends.Errorf(op, where, backends.Invalid, "%q is no image name; %s", name, nameForm))
	}
	return all[0].Ref, 0
}

// mayReplace refuses to put an image in place of a frozen one, or of any one
// when noReplace is set.
func (d *collectionNode) mayReplace(ctx context.Context, ref backends.Ref, noReplace bool) syscall.Errno {
	old, err := d.m.cache.Catalog.Find(ctx, ref)
	switch {
	case errors.Is(err, backends.NotFound):
		return 0
	case err != nil:
		return d.m.fail("rename", ref, err)
	case noReplace:
		return syscall.EEXIST
	}
	return d.m.mayChange(&old)
}

// renameLocal renames a file of this mount. To an image's name it is a push:
// at once if nobody is writing, else at the writer's close.
func (d *collectionNode) renameLocal(ctx context.Context, n *stageNode, to *collectionNode, newName string, noReplace bool) syscall.Errno {
	replaced := d.m.localFile(to.name, newName)
	if replaced == n {
		return 0
	}
	if replaced != nil && noReplace {
		return syscall.EEXIST
	}
	var ref backends.Ref
	if !isScratch(newName) {
		var errno syscall.Errno
		if ref, errno = to.imageName("rename", newName); errno != 0 {
			return errno
		}
		wait, cancel := d.m.killable(ctx, lookupLimit)
		defer cancel()
		if errno := to.mayReplace(wait, ref, noReplace); errno != 0 {
			return errno
		}
	}
	n.mu.Lock()
	was := struct {
		collection, name string
		ref              backends.Ref
	}{n.collection, n.name, n.ref}
	staged, busy := n.staged, n.writers > 0
	n.mu.Unlock()
	if staged != nil {
		var err error
		if ref == (backends.Ref{}) {
			err = staged.SetName(newName)
		} else {
			err = staged.SetRef(ref)
		}
		if err != nil {
			return d.m.fail("rename", ref, err)
		}
	}
	move := func(collection, name string, ref backends.Ref) {
		d.m.removeLocal(n)
		n.mu.Lock()
		n.collection, n.name, n.ref = collection, name, ref
		n.mu.Unlock()
		d.m.addLocal(n)
	}
	move(to.name, newName, ref)
	if ref == (backends.Ref{}) || busy {
		if replaced != nil {
			replaced.discard()
		}
		return 0
	}
	if errno := n.publishRenamed(ctx); errno != 0 {
		move(was.collection, was.name, was.ref)
		if staged != nil && was.ref == (backends.Ref{}) {
			if err := staged.SetName(was.name); err != nil {
				d.m.log.Warn("the stage could not be updated", "error", err)
			}
		}
		return errno
	}
	if replaced != nil {
		replaced.discard()
	}
	n.retire()
	return 0
}

// publishRenamed pushes a finished file that just got an image's name. Unlike
// at close, an incomplete image is an error here: nobody is going to write the rest.
func (n *stageNode) publishRenamed(ctx context.Context) syscall.Errno {
	wait, cancel := n.m.killable(ctx, 0)
	defer cancel()
	var errno syscall.Errno
	err := await(wait, func() error {
		errno = n.publish(n.m.life)
		return nil
	})
	if err != nil {
		return Errno(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if errno == 0 && n.published == nil {
		return n.m.fail("push", n.ref, backends.Errorf("push", n.ref, backends.Invalid, "the file is not a complete image"))
	}
	return errno
}

var _ io.ReaderAt = (*cache.Staged)(nil)
