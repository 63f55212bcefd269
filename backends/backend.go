package backends

import (
	"context"
	"io"
	"iter"
	"os"
	"time"
)

// Backend is one registry. Every method is safe for concurrent use, returns
// soon after its context ends, and returns errors that carry a Kind (an
// *Error, or one that KindOf understands). A Backend keeps no catalog and
// caches no bytes: package cache does, and it is the only caller.
//
// Iterators fetch pages as they are consumed; a consumer that breaks stops
// the paging; an error is the last pair; ranging again starts again. Names
// are passed on as the registry gives them: the catalog drops the ones that
// Ref.Check refuses.
type Backend interface {
	// Collections yields every collection that can be listed, in any
	// order, none twice.
	Collections(ctx context.Context) iter.Seq2[string, error]

	// Images yields a record for every image of a collection that can be
	// listed, in any order. A collection that does not exist is NotFound. It
	// makes no request per image: what a listing does not tell stays empty,
	// with Full false.
	Images(ctx context.Context, collection string) iter.Seq2[Record, error]

	// Stat gives the full record of an image, also of one that no listing
	// shows, or NotFound. With ref.Image empty it asks whether the
	// collection exists, and the record holds nothing but the Ref. The
	// returned Ref is the registry's own spelling, which may differ from
	// ref (lower case). It downloads no image bytes; size stays UnknownSize
	// where the registry charges for telling it.
	Stat(ctx context.Context, ref Ref) (Record, error)

	// Open streams the whole image from byte 0. rec came from Images, Stat or
	// Push of the same registry, perhaps in an earlier process. If the
	// image is no longer rec.Version: Stale. The context bounds the whole stream,
	// not just the opening. The caller closes it.
	Open(ctx context.Context, rec Record) (*Stream, error)

	// Close releases connections. No method is called after it.
	Close() error
}

// Stream is the bytes of an image, or of a range of it. Read returns
// io.EOF only after exactly the promised bytes: a body that ends early is an
// Error of kind Unavailable, one with extra bytes Corrupt.
type Stream struct {
	io.ReadCloser
	Size      int64  // of the whole image, even for a range; UnknownSize if not told
	Digest    Digest // of the whole image, if this response states one
	Validator string // equal and not empty: from the same bytes
}

// RangeOpener is the capability of reading parts of an image at a cost that
// does not grow with the image. OpenRange yields exactly n bytes (n > 0)
// from off, or an error; off+n never exceeds the image. Stale if the content
// is no longer rec.Version; Unsupported if this one image has no ranges (the
// caller then uses Open).
type RangeOpener interface {
	OpenRange(ctx context.Context, rec Record, off, n int64) (*Stream, error)
}

// Pusher is the capability of storing images. Push returns once the
// registry has acknowledged the whole image and, where it can be asked, has
// shown the same digest; the record is full and carries the registry's own
// spelling of ref. On any error the registry has the old image or none, as
// far as its protocol allows, and the error says otherwise if not.
//
// src can be read again for retries, at any offset, concurrently. report may
// be nil; it is called from any goroutine with the bytes sent so far.
type Pusher interface {
	Push(ctx context.Context, ref Ref, src Source, report func(sent int64)) (Record, error)
}

// Deleter is the capability of deleting an image. It returns nil only once
// the registry no longer has rec's ref (it was deleted, now or before:
// NotFound is for the caller to interpret). A tag that has moved to another
// version since rec was read is Stale where the registry allows the check.
type Deleter interface {
	Delete(ctx context.Context, rec Record) error
}

// Mover is the capability of renaming within the registry without moving the
// bytes through here. An existing target is replaced. Without it, callers
// fall back to EXDEV so that mv copies and deletes.
type Mover interface {
	Move(ctx context.Context, rec Record, to Ref) (Record, error)
}

// LocalOpener is the capability of backends whose images are files of this
// machine: they are read in place and never copied into the cache. The file
// is open for reading and the caller closes it. Stale if it is no longer
// rec.Version. Unsupported if this one image has no local file.
type LocalOpener interface {
	OpenLocal(ctx context.Context, rec Record) (*os.File, error)
}

// TreeLister is the capability of listing the whole registry in a fixed
// number of requests. A record without an image stands for a collection and
// says that it exists even when empty. Collections and Images stay usable.
type TreeLister interface {
	Tree(ctx context.Context) iter.Seq2[Record, error]
}

// Aged is for registries that charge for listings: the mount never lists
// again before this age unless it is asked to.
type Aged interface {
	MinListAge() time.Duration
}

// Source is a finished image file to push. Its bytes do not change while it
// is in use. Safe for concurrent use.
type Source interface {
	io.ReaderAt
	Size() int64
	Digest() Digest // SHA-256 of all bytes
}

// Set is what callers hold: a backend with its capabilities, looked up once.
// A nil capability is absent. Wrappers (faults, counters) wrap a Set and forward
// its fields; nobody else asks a Backend by type assertion.
type Set struct {
	Backend
	Ranges     RangeOpener
	Pusher     Pusher
	Deleter    Deleter
	Mover      Mover
	Local      LocalOpener
	Tree       TreeLister
	MinListAge time.Duration
}

// Probe finds the capabilities of b.
func Probe(b Backend) Set {
	s := Set{Backend: b}
	s.Ranges, _ = b.(RangeOpener)
	s.Pusher, _ = b.(Pusher)
	s.Deleter, _ = b.(Deleter)
	s.Mover, _ = b.(Mover)
	s.Local, _ = b.(LocalOpener)
	s.Tree, _ = b.(TreeLister)
	if a, ok := b.(Aged); ok {
		s.MinListAge = a.MinListAge()
	}
	return s
}
