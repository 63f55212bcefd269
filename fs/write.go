package fs

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/cache"
)

// stageNode is a file that exists only in this mount: scratch, or an image
// that is being written and has not been acknowledged by the registry. Its
// bytes live in the stage.
type stageNode struct {
	fusefs.Inode
	m   *mount
	ino uint64

	mu         sync.Mutex
	collection string
	name       string
	ref        backends.Ref     // of an image; zero for scratch
	base       *backends.Record // the image that is being replaced, if any
	staged     *cache.Staged    // nil until the first open, and after a publish
	pristine   bool             // replaces base and was neither truncated nor written: still reads as base
	changed    uint64           // counts writes and truncations
	tried      uint64           // value of changed at the last attempt to publish
	triedErr   syscall.Errno    // what that attempt gave
	published  *backends.Record // what the registry acknowledged
	killed     bool             // a writer died of a signal
	pushing    bool             // a push is under way
	gone       bool             // unlinked: nothing more is published
	readers    int              // open handles
	writers    int
	mode       uint32
	times      [2]time.Time // access, modification

	publishing sync.Mutex // held by the one flush that publishes; before mu
}

var (
	_ fusefs.NodeGetattrer     = (*stageNode)(nil)
	_ fusefs.NodeSetattrer     = (*stageNode)(nil)
	_ fusefs.NodeOpener        = (*stageNode)(nil)
	_ fusefs.NodeGetxattrer    = (*stageNode)(nil)
	_ fusefs.NodeListxattrer   = (*stageNode)(nil)
	_ fusefs.NodeSetxattrer    = (*stageNode)(nil)
	_ fusefs.NodeRemovexattrer = (*stageNode)(nil)
)

// newStage makes the node of a file to be written. base is the image it
// will replace, or nil. Nothing is on disk before its first open.
func (m *mount) newStage(collection, name string, ref backends.Ref, base *backends.Record) *stageNode {
	now := m.now()
	return &stageNode{
		m: m, ino: m.stageIno(), collection: collection, name: name, ref: ref, base: base,
		pristine: base != nil, mode: uint32(m.opts.FileMode.Perm()) | 0o200, times: [2]time.Time{now, now},
	}
}

func (n *stageNode) entry(ctx context.Context, d *collectionNode, out *fuse.EntryOut) *fusefs.Inode {
	n.attr(&out.Attr)
	out.SetEntryTimeout(0)
	out.SetAttrTimeout(0)
	return d.NewInode(ctx, n, fusefs.StableAttr{Mode: syscall.S_IFREG, Ino: n.ino})
}

func (n *stageNode) reference() backends.Ref {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ref
}

// isImage reports whether closing the file publishes it; n.mu is held.
func (n *stageNode) isImage() bool { return n.ref != backends.Ref{} }

// Create makes a new file: an image that its close will push, or scratch.
// Any other name is refused with EINVAL and a log line that tells the form.
func (d *collectionNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fusefs.Inode, fusefs.FileHandle, uint32, syscall.Errno) {
	n, errno := d.newFile(name, mode)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	h, errno := n.open(flags)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	d.m.addLocal(n)
	return n.entry(ctx, d, out), h, 0, 0
}

// Mknod makes an empty regular file, as Create does; other kinds are refused.
func (d *collectionNode) Mknod(ctx context.Context, name string, mode, _ uint32, out *fuse.EntryOut) (*fusefs.Inode, syscall.Errno) {
	if mode&syscall.S_IFMT != syscall.S_IFREG {
		return nil, syscall.EPERM
	}
	n, errno := d.newFile(name, mode)
	if errno != 0 {
		return nil, errno
	}
	if errno := n.stage(); errno != 0 {
		return nil, errno
	}
	d.m.addLocal(n)
	return n.entry(ctx, d, out), 0
}

func (d *collectionNode) newFile(name string, mode uint32) (*stageNode, syscall.Errno) {
	if errno := d.m.mayChange(nil); errno != 0 {
		return nil, errno
	}
	if d.m.closing() {
		return nil, syscall.EIO
	}
	var ref backends.Ref
	if !isScratch(name) {
		all := targets(d.name, name)
		if len(all) == 0 || all[0].version != "" {
			where := backends.Ref{Collection: d.name}
			return nil, d.m.fail("create", where, backends.Errorf("create", where, backends.Invalid, "%q is no image name; %s, and images live in a collection", name, nameForm))
		}
		ref = all[0].Ref
	}
	n := d.m.newStage(d.name, name, ref, nil)
	n.mode = mode & 0o777
	return n, 0
}

// Open opens the file. A second writer of an image's name while another has
// it open gets a file of its own (ESTALE sends the kernel through Lookup): the
// later close wins, and each publishes a whole image.
func (n *stageNode) Open(ctx context.Context, flags uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	if n.m.closing() {
		return nil, 0, syscall.EIO
	}
	n.mu.Lock()
	busy := isWrite(flags) && n.isImage() && n.writers > 0
	ref := n.ref
	n.mu.Unlock()
	if busy {
		n.m.intend(ctx, ref)
		return nil, 0, syscall.ESTALE
	}
	h, errno := n.open(flags)
	n.m.fulfil(n)
	return h, 0, errno
}

func (n *stageNode) open(flags uint32) (fusefs.FileHandle, syscall.Errno) {
	if errno := n.stage(); errno != 0 {
		return nil, errno
	}
	h := &writeHandle{n: n, writes: flags&syscall.O_ACCMODE != syscall.O_RDONLY}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.readers++
	if h.writes {
		n.writers++
	}
	n.m.opened(1)
	return h, 0
}

// stage makes sure that there is a staged file, empty if it is new.
func (n *stageNode) stage() syscall.Errno {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.staged != nil {
		return 0
	}
	name := ""
	if !n.isImage() {
		name = n.name
	}
	staged, err := n.m.cache.Stage.Create(name, n.ref)
	if err != nil {
		return n.m.fail("create", n.ref, err)
	}
	n.staged = staged
	if n.published != nil { // opened again, by its inode and not by its name
		n.base, n.published, n.pristine = n.published, nil, true
		n.changed, n.tried, n.triedErr = 0, 0, 0
	}
	n.m.track(n, true)
	return 0
}

// fill gives the staged file the bytes of the image it replaces, before the
// first read or partial write of a file that was not truncated. It
// costs a whole download of an image that is not cached.
func (n *stageNode) fill(ctx context.Context) error {
	n.mu.Lock()
	if !n.pristine {
		n.mu.Unlock()
		return nil
	}
	base, staged := *n.base, n.staged
	n.mu.Unlock()

	blob, err := n.m.cache.Store.Open(ctx, base)
	if err != nil {
		return err
	}
	defer blob.Close()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < blob.Size(); {
		got, err := blob.ReadAt(ctx, buf[:min(int64(len(buf)), blob.Size()-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if _, err := staged.WriteAt(buf[:got], off); err != nil {
			return err
		}
		off += int64(got)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pristine = false
	return nil
}

// attr fills in the attributes; they are never cached by the kernel.
func (n *stageNode) attr(a *fuse.Attr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a.Mode = syscall.S_IFREG | n.mode
	a.Nlink = 1
	a.Uid, a.Gid = n.m.opts.UID, n.m.opts.GID
	a.Ino = n.ino
	a.Blksize = blockSize
	a.SetTimes(&n.times[0], &n.times[1], &n.times[1])
	switch {
	case n.pristine && n.base.Size != backends.UnknownSize:
		a.Size = uint64(n.base.Size)
	case n.staged != nil:
		a.Size = uint64(n.staged.Size())
		a.Blocks = uint64(n.staged.Blocks())
	case n.published != nil && n.published.Size > 0:
		a.Size = uint64(n.published.Size)
	}
	if a.Blocks == 0 {
		a.Blocks = (a.Size + 511) / 512
	}
}

// Getattr gives the size written so far.
func (n *stageNode) Getattr(_ context.Context, _ fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attr(&out.Attr)
	out.SetTimeout(0)
	return 0
}

// Setattr truncates or extends, and keeps mode and times while the file is
// only here; owners are the mount's.
func (n *stageNode) Setattr(ctx context.Context, f fusefs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		wait, cancel := n.m.killable(ctx, 0)
		defer cancel()
		if err := n.resize(wait, int64(size)); err != nil {
			return n.m.fail("truncate", n.reference(), err)
		}
	}
	n.mu.Lock()
	if mode, ok := in.GetMode(); ok {
		n.mode = mode & 0o777
	}
	if t, ok := in.GetATime(); ok {
		n.times[0] = t
	}
	if t, ok := in.GetMTime(); ok {
		n.times[1] = t
	}
	n.mu.Unlock()
	return n.Getattr(ctx, f, out)
}

func (n *stageNode) resize(ctx context.Context, size int64) error {
	if errno := n.stage(); errno != 0 {
		return errno
	}
	if err := n.restage(ctx); err != nil {
		return err
	}
	if size > 0 {
		if err := n.fill(ctx); err != nil {
			return err
		}
	}
	if err := n.staged.Truncate(size); err != nil {
		return err
	}
	n.touched()
	return nil
}

// touched notes a change of the bytes.
func (n *stageNode) touched() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pristine = false
	n.changed++
	n.times[1] = n.m.now()
}

// restage gives a published file new bytes of its own before it changes again: what
// was published is a verified blob now and must never be written.
func (n *stageNode) restage(ctx context.Context) error {
	n.mu.Lock()
	rec := n.published
	n.mu.Unlock()
	if rec == nil {
		return nil
	}
	n.publishing.Lock()
	defer n.publishing.Unlock()
	n.mu.Lock()
	if n.published == nil {
		n.mu.Unlock()
		return nil
	}
	old := n.staged
	n.staged, n.published, n.base, n.pristine = nil, nil, rec, true
	n.mu.Unlock()
	if old != nil {
		if err := old.Close(); err != nil {
			return err
		}
	}
	if errno := n.stage(); errno != 0 {
		return errno
	}
	return n.fill(ctx)
}

// writeHandle is an open stage file. It never offers a descriptor for
// passthrough.
type writeHandle struct {
	n      *stageNode
	writes bool
}

var (
	_ fusefs.FileReader   = (*writeHandle)(nil)
	_ fusefs.FileWriter   = (*writeHandle)(nil)
	_ fusefs.FileFlusher  = (*writeHandle)(nil)
	_ fusefs.FileFsyncer  = (*writeHandle)(nil)
	_ fusefs.FileReleaser = (*writeHandle)(nil)
)

// Read reads what was written so far.
func (h *writeHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	wait, cancel := h.n.m.killable(ctx, 0)
	defer cancel()
	if err := h.n.fill(wait); err != nil {
		return nil, h.n.m.fail("read", h.n.reference(), err)
	}
	got, err := h.n.staged.ReadAt(dest, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, h.n.m.fail("read", h.n.reference(), err)
	}
	return fuse.ReadResultData(dest[:got]), 0
}

// Write stores bytes in the stage; nothing goes to the registry before the
// file is closed.
func (h *writeHandle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	n := h.n
	wait, cancel := n.m.killable(ctx, 0)
	defer cancel()
	err := n.restage(wait)
	if err == nil {
		err = n.fill(wait)
	}
	if err != nil {
		return 0, n.m.fail("write", n.reference(), err)
	}
	written, err := n.staged.WriteAt(data, off)
	if errors.Is(err, cache.ErrFrozen) {
		return 0, syscall.ETXTBSY // another descriptor's close is pushing the file
	}
	if written > 0 {
		n.touched()
	}
	if err != nil {
		return uint32(written), n.m.fail("write", n.reference(), err)
	}
	return uint32(written), 0
}

// Fsync makes the staged bytes durable here; it does not push.
func (h *writeHandle) Fsync(context.Context, uint32) syscall.Errno {
	h.n.mu.Lock()
	staged, published := h.n.staged, h.n.published
	h.n.mu.Unlock()
	if staged == nil || published != nil {
		return 0
	}
	return h.n.m.fail("fsync", h.n.reference(), staged.Sync())
}
