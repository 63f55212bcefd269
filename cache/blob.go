package cache

import (
	"context"
	"io"
	"os"
	"sync/atomic"

	"github.com/sregistry/sregistry-fs/backends"
)

// Blob is a reference to the immutable bytes of one version of an image,
// wherever they are: here, on their way, or still in the registry. Safe for
// concurrent use; nothing but Close may be called after Close.
type Blob struct {
	c      *content
	closed atomic.Bool
}

// Size is exact and does not change.
func (b *Blob) Size() int64 { return b.c.size }

// Digest is the SHA-256 of the bytes, zero until they were verified, and for
// an image that is read in place.
func (b *Blob) Digest() backends.Digest {
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	return b.c.digest
}

// Complete reports that every byte is here and verified, or local.
func (b *Blob) Complete() bool { return b.c.file.Load() != nil }

// File gives the verified blob or the local file, open for reading and valid
// until Close; the caller must not close it. It is false while bytes are missing.
func (b *Blob) File() (*os.File, bool) {
	f := b.c.file.Load()
	return f, f != nil
}

// ReadAt fills p from off, fetching what is missing. It reads less than
// len(p) only with an error: io.EOF at the end of the image, ctx's own error
// when ctx ends first (the fetch goes on for others), an *Error that says
// why the registry did not give the bytes, within a bounded time. Bytes
// that are here are served whatever the registry does.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, backends.Errorf("read", b.c.rec.Ref, backends.Invalid, "offset %d", off)
	}
	if off >= b.c.size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), b.c.size-off)]
	done := 0
	for done < len(want) {
		// A large read goes in steps, so that the read-ahead sees a sequence.
		n, err := b.c.readAt(ctx, want[done:min(len(want), done+maxStep)], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// maxStep bounds what one step of ReadAt asks for.
const maxStep = 1 << 20

// Wait fetches what is missing and returns once the image is verified, or
// with the error that prevents it. report may be nil; it is called from this
// goroutine with the bytes that are here.
func (b *Blob) Wait(ctx context.Context, report func(done, total int64)) error {
	return b.c.fill(ctx, report)
}

// Close drops the reference. Fetches under way may go on for a while;
// a download that could not be resumed goes on to its end.
func (b *Blob) Close() error {
	if !b.closed.Swap(true) {
		b.c.release(1, 0)
	}
	return nil
}
