package fs

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/cache"
)

const (
	// openLimit bounds an open: settling the size may take the whole
	// download where a registry tells it only at the end.
	openLimit = 10 * time.Minute
	// attrTimeout is how long the kernel may trust the attributes of an
	// image whose size is known; they are fixed with the inode.
	attrTimeout = time.Minute
	// blockSize is what stat suggests for reads.
	blockSize = 128 << 10
)

// imageNode is one immutable content of one image. What it stands for is settled
// when it is first opened or asked for its full record; until then no
// byte of it was served, and it may take over what the registry then says.
type imageNode struct {
	fusefs.Inode
	m     *mount
	ino   uint64
	latch modeLatch

	mu       sync.Mutex
	rec      backends.Record
	listed   string // version it was made for
	settled  bool   // rec.Version is final for this inode
	verified bool   // it was opened with its digest compared, and holds no older pages
	xattrs   *attributes
}

var (
	_ fusefs.NodeGetattrer     = (*imageNode)(nil)
	_ fusefs.NodeSetattrer     = (*imageNode)(nil)
	_ fusefs.NodeOpener        = (*imageNode)(nil)
	_ fusefs.NodeGetxattrer    = (*imageNode)(nil)
	_ fusefs.NodeListxattrer   = (*imageNode)(nil)
	_ fusefs.NodeSetxattrer    = (*imageNode)(nil)
	_ fusefs.NodeRemovexattrer = (*imageNode)(nil)
	_ fusefs.NodeOnForgetter   = (*imageNode)(nil)
)

// image gives the node that stands for rec: the one in use, or a new one.
func (m *mount) image(rec backends.Record) *imageNode {
	m.mu.Lock()
	n := m.images[rec.Ref]
	m.mu.Unlock()
	if n != nil && n.standsFor(rec) {
		return n
	}
	n = &imageNode{m: m, rec: rec, listed: rec.Version, ino: m.newIno(rec)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.images[rec.Ref] = n
	return n
}

func (m *mount) newIno(rec backends.Record) uint64 {
	return inodeNumber(m.opts.Source, rec.Ref.String(), rec.Version)
}

// inoOf gives the inode number a look-up of rec would give.
func (m *mount) inoOf(rec backends.Record) uint64 {
	m.mu.Lock()
	n := m.images[rec.Ref]
	m.mu.Unlock()
	if n != nil && n.standsFor(rec) {
		return n.ino
	}
	return m.newIno(rec)
}

func (n *imageNode) standsFor(rec backends.Record) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if rec.Version == n.rec.Version {
		if rec.Size != backends.UnknownSize && n.rec.Size == backends.UnknownSize {
			n.rec.Size = rec.Size
		}
		return true
	}
	return rec.Version == n.listed
}

func (n *imageNode) record() backends.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rec
}

// OnForget lets a node go that the kernel no longer knows.
func (n *imageNode) OnForget() {
	ref := n.record().Ref
	n.m.mu.Lock()
	defer n.m.mu.Unlock()
	if n.m.images[ref] == n {
		delete(n.m.images, ref)
	}
}

// entry answers a look-up with n.
func (n *imageNode) entry(ctx context.Context, d *collectionNode, out *fuse.EntryOut) *fusefs.Inode {
	known := n.attr(&out.Attr)
	out.SetEntryTimeout(0)
	out.SetAttrTimeout(known)
	return d.NewInode(ctx, n, fusefs.StableAttr{Mode: syscall.S_IFREG, Ino: n.ino})
}

// attr fills in the attributes and tells how long they hold. A size that the registry
// does not tell is shown as 1, never 0 and never an estimate, and not to be
// cached: GNU tar does not open a file of size 0.
func (n *imageNode) attr(a *fuse.Attr) time.Duration {
	rec := n.record()
	a.Mode = syscall.S_IFREG | uint32(n.m.opts.FileMode.Perm())
	if rec.Frozen {
		a.Mode &^= 0o222
	}
	a.Nlink = 1
	a.Uid, a.Gid = n.m.opts.UID, n.m.opts.GID
	a.Ino = n.ino
	a.Blksize = blockSize
	if !rec.Created.IsZero() {
		a.SetTimes(nil, &rec.Created, &rec.Created)
	}
	if rec.Size == backends.UnknownSize {
		a.Size, a.Blocks = 1, 0
		return 0
	}
	a.Size = uint64(rec.Size)
	a.Blocks = (a.Size + 511) / 512
	return attrTimeout
}

// Getattr gives the attributes; it asks nobody.
func (n *imageNode) Getattr(_ context.Context, _ fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.SetTimeout(n.attr(&out.Attr))
	return 0
}

// Setattr accepts times, modes and owners without keeping them, and refuses a
// change of size: only a file that is being written has one.
func (n *imageNode) Setattr(ctx context.Context, f fusefs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if _, ok := in.GetSize(); ok {
		rec := n.record()
		return n.m.fail("truncate", rec.Ref, backends.Errorf("truncate", rec.Ref, backends.Unsupported, "open the image for writing to replace it"))
	}
	return n.Getattr(ctx, f, out)
}

// Open gives a handle that reads one content to its end. For writing it
// answers ESTALE once: the kernel looks the name up again, and Lookup
// then gives a fresh stage inode, so that no write ever reaches this inode's
// page cache or the verified blob behind it.
func (n *imageNode) Open(ctx context.Context, flags uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	if n.m.closing() {
		return nil, 0, syscall.EIO
	}
	if isWrite(flags) {
		rec := n.record()
		if errno := n.m.mayChange(&rec); errno != 0 {
			return nil, 0, errno
		}
		n.m.intend(ctx, rec.Ref)
		return nil, 0, syscall.ESTALE
	}
	wait, cancel := n.m.killable(ctx, openLimit)
	defer cancel()
	rec, err := n.settle(wait)
	var blob *cache.Blob
	if err == nil {
		blob, err = n.m.cache.Store.Open(wait, rec)
	}
	if err == nil {
		if err = firstByte(wait, blob); err != nil {
			err = errors.Join(err, blob.Close())
		}
	}
	if errors.Is(err, backends.Stale) {
		// The tag has moved since it was listed. ESTALE sends the kernel
		// through Lookup once more, which then finds what it is now.
		if _, again := n.m.cache.Catalog.Recheck(wait, rec.Ref); again != nil {
			err = again
		}
		n.unsettle()
	}
	if err != nil {
		return nil, 0, n.m.fail("open", rec.Ref, err)
	}
	n.mu.Lock()
	n.rec.Size = blob.Size()
	n.settled = true
	n.mu.Unlock()
	return n.handle(blob)
}

// firstByte makes sure that the image can be read at all, while the open can
// still fail: a tag that moved since it was listed is noticed here, and every reader
// starts with the header anyway.
func firstByte(ctx context.Context, blob *cache.Blob) error {
	if blob.Complete() || blob.Size() == 0 {
		return nil
	}
	_, err := blob.ReadAt(ctx, make([]byte, 1), 0)
	return err
}

// unsettle forgets a size that was settled by an answer of the registry which
// it no longer gives, unless somebody reads the image and so was told.
func (n *imageNode) unsettle() {
	if n.latch.inUse() {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rec.Size, n.settled, n.rec.Full = backends.UnknownSize, false, false
}

// settle makes sure that the full record behind this inode is known, with at
// most one request, and none when the bytes are complete here. A record
// of another version than what was already served is Stale.
func (n *imageNode) settle(ctx context.Context) (backends.Record, error) {
	rec := n.record()
	if size, digest, ok := n.m.cache.Store.Cached(rec); ok {
		rec.Size = size
		if rec.Digest.IsZero() {
			rec.Digest = digest
		}
		return rec, nil
	}
	full, err := n.m.cache.Catalog.Full(ctx, rec)
	if err != nil {
		return rec, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.settled && full.Version != n.rec.Version {
		return rec, backends.Errorf("open", rec.Ref, backends.Stale, "the tag has moved")
	}
	size := n.rec.Size
	n.rec = full
	if n.rec.Size == backends.UnknownSize && n.settled {
		n.rec.Size = size
	}
	n.settled = true
	return n.rec, nil
}

func isWrite(flags uint32) bool {
	return flags&syscall.O_ACCMODE != syscall.O_RDONLY || flags&syscall.O_TRUNC != 0
}
