package cache

import (
	"context"
	"os"
	"sync"

	"github.com/sregistry/sregistry-fs/backends"
)

// Section says in which file a piece of an image lies, at the same offset. Its
// descriptor is good until Release; nobody else closes or changes it.
type Section struct {
	File *os.File
	held *heldFile // nil: the blob holds it
}

// Release gives the section back, once.
func (s Section) Release() {
	if s.held != nil {
		s.held.drop()
	}
}

// Section waits like ReadAt until the n bytes at off, which lie within the image,
// are here, and says in which file, so that the caller need not copy them. The file
// is nil where the bytes are kept in none: ReadAt gives them.
func (b *Blob) Section(ctx context.Context, off int64, n int) (Section, error) {
	if off < 0 || n <= 0 || off > b.c.size-int64(n) {
		return Section{}, backends.Errorf("read", b.c.rec.Ref, backends.Invalid, "%d bytes at offset %d", n, off)
	}
	return b.c.section(ctx, off, n)
}

// heldFile is a file that is closed when nobody holds its descriptor.
type heldFile struct {
	*os.File

	mu     sync.Mutex // the last one in the order
	holds  int
	closed bool
}

// hold reports whether the file is still open, and keeps it so until drop.
func (h *heldFile) hold() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.holds++
	}
	return !h.closed
}

func (h *heldFile) drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.holds--; h.holds == 0 && h.closed {
		_ = h.File.Close() // whoever closed it was told that it went well
	}
}

// Close closes the file, now or with the last hold on it.
func (h *heldFile) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return os.ErrClosed
	}
	h.closed = true
	if h.holds > 0 {
		return nil
	}
	return h.File.Close()
}
