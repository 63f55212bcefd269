package cache

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// StoreOptions say where a Store keeps bytes and where it gets them.
type StoreOptions struct {
	// Dir is the cache directory, shared with other processes; made with mode
	// 0700 if absent, refused if it belongs to another user.
	Dir string
	// Registry identifies the registry across processes and time; no credentials.
	Registry string
	Backend  backends.Set
	// MaxBytes bounds what blobs and partial files take, in allocated bytes;
	// 0 means no bound. It may be passed by images without ranges while they
	// are open, and by a sixteenth plus what is being written at the moment. Of
	// an image with ranges, what does not fit is read without being kept.
	MaxBytes int64
	// FreeFloor is the space on the file system that stays free, in bytes.
	FreeFloor int64
	// Learn is told an image's size as soon as a registry that keeps it to itself
	// has shown it, and size and SHA-256 once the bytes are verified. It may be
	// nil; it is called without locks held, from any goroutine.
	Learn func(rec backends.Record, size int64, digest backends.Digest)
	Log   *slog.Logger
	Now   func() time.Time
}

// Store keeps image bytes: fetched lazily, verified, promoted to blobs,
// evicted. Safe for concurrent use, and for other processes on the same Dir. The
// backend stays the caller's.
type Store struct {
	opt      StoreOptions
	disk     *disk
	slots    slots
	tasks    tasks
	room     room
	buffers  sync.Pool // *[chunkSize]byte
	landings sync.Pool // *[landingChunks * chunkSize]byte
	ctx      context.Context
	cancel   context.CancelFunc

	mu       sync.Mutex // before content.mu, before tasks.mu
	contents map[string]*content
	closed   bool
}

// NewStore opens the store's directory. It takes the same time however much
// is in there, and asks the registry nothing. The caller calls Close.
func NewStore(opt StoreOptions) (*Store, error) {
	d, err := openDisk(opt.Dir, opt.Now)
	if err != nil {
		return nil, err
	}
	s := &Store{opt: opt, disk: d, slots: newSlots(), contents: make(map[string]*content)}
	s.buffers.New = func() any { return new([chunkSize]byte) }
	s.landings.New = func() any { return new([landingChunks * chunkSize]byte) }
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.tasks.run(s.sweep)
	return s, nil
}

// Open gives a reference to the bytes of one version of an image; rec.Version
// must not be empty. The size is settled when it returns, which for a registry that tells
// no size even in its answer takes the whole download; else a known size
// costs no request. Without ranges the one download starts here. A wait ends with
// ctx, with its error; what was begun for it goes on for a while.
func (s *Store) Open(ctx context.Context, rec backends.Record) (*Blob, error) {
	if rec.Version == "" {
		return nil, backends.Errorf("open", rec.Ref, backends.Invalid, "the record has no version")
	}
	key := versionKey(s.opt.Registry, rec)
	for {
		c, joined := s.enter(key, rec)
		if c == nil {
			return nil, errStoreClosed("open", rec.Ref)
		}
		if !joined { // it is ending: its partial file is free again in a moment
			select {
			case <-c.gone:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		select {
		case <-c.ready:
		case <-ctx.Done():
			c.release(1, 0)
			return nil, ctx.Err()
		}
		if c.err != nil {
			c.release(1, 0)
			return nil, c.err
		}
		c.expectDigest(rec.Digest)
		return &Blob{c: c}, nil
	}
}

// enter takes a reference on the content of key, making it if need be, or
// reports with joined false that one is on its way out. It is nil when the
// store is closed.
func (s *Store) enter(key string, rec backends.Record) (c *content, joined bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false
	}
	c = s.contents[key]
	if c == nil {
		c = newContent(s, key, rec)
		s.contents[key] = c
		c.refs++
		c.mu.Lock()
		c.spawn(c.start)
		c.mu.Unlock()
		return c, true
	}
	if c.grace != nil && !c.grace.Stop() {
		c.closing = true
	}
	c.grace = nil
	if c.closing {
		return c, false
	}
	c.refs++
	return c, true
}

func errStoreClosed(op string, ref backends.Ref) error {
	return backends.Errorf(op, ref, backends.Unavailable, "the cache is being closed: %w", os.ErrClosed)
}

// Cached reports whether the whole, verified image is here, from what the
// disk says: it makes no request, and hashes nothing.
func (s *Store) Cached(rec backends.Record) (size int64, digest backends.Digest, ok bool) {
	digest, want, linked := s.disk.readLink(versionKey(s.opt.Registry, rec))
	if linked {
		if size, ok = s.disk.hasBlob(digest); ok && size == want {
			return size, digest, true
		}
	}
	if rec.Digest.Algorithm == "sha256" {
		if size, ok = s.disk.hasBlob(rec.Digest); ok {
			return size, rec.Digest, true
		}
	}
	return 0, backends.Digest{}, false
}

// SetPin keeps an image from eviction, or no longer. It may be set before any
// byte is here.
func (s *Store) SetPin(rec backends.Record, pinned bool) error {
	name := s.pin(rec)
	if pinned {
		return s.disk.write(name, []byte(rec.Ref.String()+"\n"))
	}
	if err := s.disk.root.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Pinned reports whether SetPin keeps the image here.
func (s *Store) Pinned(rec backends.Record) bool {
	_, err := s.disk.root.Lstat(s.pin(rec))
	return err == nil
}

func (s *Store) pin(rec backends.Record) string {
	return filepath.Join(pinDir, versionKey(s.opt.Registry, rec))
}

// Adopt makes file the verified blob of rec by renaming it: it lies on the
// store's file system, nobody writes to it any more, and digest is the
// SHA-256 of its bytes. After an error file may still be there.
func (s *Store) Adopt(rec backends.Record, file string, digest backends.Digest) error {
	if digest.Algorithm != "sha256" {
		return backends.Errorf("adopt", rec.Ref, backends.Invalid, "digest %q is not SHA-256", digest)
	}
	fi, err := os.Lstat(file)
	if err != nil {
		return &backends.Error{Op: "adopt", Ref: rec.Ref, Err: err}
	}
	f, err := s.disk.install(s.ctx, file, digest, fi.Size())
	if err == nil {
		err = errors.Join(s.disk.writeLink(versionKey(s.opt.Registry, rec), digest, fi.Size()), f.Close())
	}
	if err != nil {
		return &backends.Error{Op: "adopt", Ref: rec.Ref, Err: err}
	}
	s.makeRoom()
	return nil
}

// Close ends every fetch, keeps what they brought for the next process and
// releases every descriptor, also those of Blobs that are still open: their
// reads fail from then on. If ctx ends first, it returns ctx's error with the
// rest still under way.
func (s *Store) Close(ctx context.Context) error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if again {
		return nil
	}
	idle := s.tasks.close()
	s.cancel()
	select {
	case <-idle:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	left := make([]*content, 0, len(s.contents))
	for _, c := range s.contents {
		left = append(left, c)
	}
	s.mu.Unlock()
	for _, c := range left {
		c.end()
		select {
		case <-c.gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.disk.close()
}

// tasks counts the store's goroutines and refuses new ones once it closes.
type tasks struct {
	mu     sync.Mutex // the last one in the order
	n      int
	closed bool
	idle   chan struct{} // made by close
}

func (t *tasks) run(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.n++
	go func() {
		defer t.done()
		f()
	}()
	return true
}

func (t *tasks) done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.closed {
		close(t.idle)
	}
}

func (t *tasks) close() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed, t.idle = true, make(chan struct{})
	if t.n == 0 {
		close(t.idle)
	}
	return t.idle
}
