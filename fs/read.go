package fs

import (
	"context"
	"syscall"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/cache"
)

// readHandle reads one content; it never writes. It owns one reference to
// the blob and one hold on the inode's I/O mode, until Release.
type readHandle struct {
	n    *imageNode
	blob *cache.Blob
}

// passthroughHandle is a readHandle whose bytes the kernel may read from the
// cache's file itself. Only handles for reading are of this type.
type passthroughHandle struct{ *readHandle }

var (
	_ fusefs.FileReader          = (*readHandle)(nil)
	_ fusefs.FileReleaser        = (*readHandle)(nil)
	_ fusefs.FilePassthroughFder = passthroughHandle{}
)

// handle takes over blob and chooses the I/O mode: the inode's mode in force,
// or the best for this blob if nothing has the inode open.
func (n *imageNode) handle(blob *cache.Blob) (fusefs.FileHandle, uint32, syscall.Errno) {
	want := buffered
	if _, ok := blob.File(); ok && n.m.passthrough {
		want = passthrough
	}
	n.m.opened(1)
	h := &readHandle{n: n, blob: blob}
	if n.latch.acquire(want) == passthrough {
		return passthroughHandle{h}, 0, 0
	}
	if !n.keepsCache(blob) {
		return h, 0, 0
	}
	return h, fuse.FOPEN_KEEP_CACHE, 0
}

// keepsCache reports whether the kernel may keep the pages that it has of the inode.
// Pages that were read before the digest was compared may be wrong, even if what was
// fetched after them is right; so the first open of the verified image drops them.
func (n *imageNode) keepsCache(blob *cache.Blob) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	keep := n.verified
	n.verified = blob.Complete()
	return keep
}

// PassthroughFd gives the verified file that the kernel reads from.
func (h passthroughHandle) PassthroughFd() (int, bool) {
	f, ok := h.blob.File()
	if !ok {
		return 0, false
	}
	return int(f.Fd()), true
}

// Read answers with exactly the bytes asked for, fewer only at the end of
// the image: the kernel would hand out zeros for the rest of a short reply.
func (h *readHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	size := h.blob.Size()
	want := int(min(int64(len(dest)), max(size-off, 0)))
	if want == 0 {
		return fuse.ReadResultData(nil), 0
	}
	if f, ok := h.blob.File(); ok {
		return fuse.ReadResultFd(f.Fd(), off, want), 0
	}
	wait, cancel := h.n.m.killable(ctx, 0)
	defer cancel()
	s, err := h.blob.Section(wait, off, want)
	if err != nil {
		return nil, h.n.m.fail("read", h.n.record().Ref, err)
	}
	if s.File != nil {
		return &section{Section: s, h: h, off: off, n: want}, 0
	}
	got, err := h.blob.ReadAt(wait, dest[:want], off)
	if got == want {
		return fuse.ReadResultData(dest[:want]), 0
	}
	ref := h.n.record().Ref
	if err == nil {
		err = backends.Errorf("read", ref, backends.Corrupt, "%d of %d bytes at offset %d", got, want, off)
	}
	return nil, h.n.m.fail("read", ref, err)
}

// section is a reply that lies in a file: the server splices it from there, or
// asks for its bytes.
type section struct {
	cache.Section
	h   *readHandle
	off int64
	n   int
}

var _ fuse.ReadResult = (*section)(nil)

func (s *section) Seekable() (fd uintptr, off int64, n int) { return s.File.Fd(), s.off, s.n }
func (s *section) Size() int                                { return s.n }
func (s *section) Done()                                    { s.Release() }

// Bytes is asked for where splicing failed: the disk may have lost the bytes,
// and ReadAt fetches them again.
func (s *section) Bytes(buf []byte) ([]byte, fuse.Status) {
	got, err := s.h.blob.ReadAt(s.h.n.m.life, buf[:s.n], s.off)
	if got == s.n {
		return buf[:s.n], fuse.OK
	}
	return nil, fuse.Status(s.h.n.m.fail("read", s.h.n.record().Ref, err))
}

// Release gives back the blob and the hold on the I/O mode.
func (h *readHandle) Release(context.Context) syscall.Errno {
	err := h.blob.Close()
	h.n.latch.release()
	h.n.m.opened(-1)
	return h.n.m.fail("close", h.n.record().Ref, err)
}
