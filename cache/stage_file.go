package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/sregistry/sregistry-fs/backends"
)

const (
	hashAhead = 1 << 20   // bytes that must wait before the background hash starts
	hashPiece = 256 << 10 // bytes hashed between two looks at the state
)

// ErrFrozen says that a staged file takes no more writes.
var ErrFrozen = errors.New("the staged file is frozen: it is being pushed")

// Staged is one staged file, open for reading and writing until it is frozen.
// All methods are safe for concurrent use; writes happen one at a time, and
// after Close every method but Drop and the plain getters fails.
//
// The SHA-256 that a push needs is computed beside the writing, by a
// goroutine that follows the writer through the page cache and ends when it
// has caught up. A write below what was hashed already costs one full read
// at Freeze.
type Staged struct {
	stage *Stage
	id    string
	root  *os.Root // stage/<id>
	file  *os.File // data
	lock  *os.File

	freezing chan struct{} // held by the one running Freeze

	mu      sync.Mutex // guards what follows, and is held across each local write
	journal journal
	size    int64 // of the file, in bytes
	frozen  bool
	closed  bool
	dropped bool
	durable bool // the journal as it is now is on disk

	contig  int64         // [0,contig) has been written
	claimed int64         // [0,claimed) is hashed or being hashed; 0 with sum nil
	sum     hash.Hash     // used by the hasher while hashing is not nil, else under mu
	spoiled bool          // sum does not match the bytes any more
	hashing chan struct{} // closed when the running hasher ends; nil without one
}

// ID names the entry for Stage.Open and for people.
func (f *Staged) ID() string { return f.id }

// Path is where the bytes are. The file may be renamed away (Store.Adopt)
// once its push is acknowledged.
func (f *Staged) Path() string { return filepath.Join(f.stage.root.Name(), f.id, stageData) }

// Ref is what the bytes will become; zero for scratch.
func (f *Staged) Ref() backends.Ref {
	f.mu.Lock()
	defer f.mu.Unlock()
	return backends.Ref(f.journal.Ref)
}

// Name is the scratch name; empty for an image.
func (f *Staged) Name() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.journal.Name
}

// Size is the current length in bytes.
func (f *Staged) Size() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size
}

// Blocks is the allocated space in 512-byte units, as in st_blocks; 0 if it
// cannot be told.
func (f *Staged) Blocks() int64 {
	if info, err := f.file.Stat(); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			return st.Blocks
		}
	}
	return 0
}

// ReadAt is io.ReaderAt; holes read as zeros.
func (f *Staged) ReadAt(p []byte, off int64) (int, error) { return f.file.ReadAt(p, off) }

// WriteAt is io.WriterAt; a gap that it leaves reads as zeros. ErrFrozen
// after Freeze. A local failure keeps its errno: errors.Is(err,
// syscall.ENOSPC) works.
func (f *Staged) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen {
		return 0, ErrFrozen
	}
	f.touch(off)
	n, err := f.file.WriteAt(p, off)
	end := off + int64(n)
	f.size = max(f.size, end)
	if off <= f.contig {
		f.contig = max(f.contig, end)
	}
	f.follow()
	return n, err
}

// Truncate sets the length. ErrFrozen after Freeze.
func (f *Staged) Truncate(n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen {
		return ErrFrozen
	}
	if n == f.size {
		return nil
	}
	f.touch(min(n, f.size))
	if err := f.file.Truncate(n); err != nil {
		return err
	}
	f.size = n
	f.contig = min(f.contig, n)
	return nil
}

// touch notes, before it happens, a change of the bytes from off on.
func (f *Staged) touch(off int64) {
	if off < f.claimed {
		f.spoiled = true
	}
	if f.journal.Digest != "" { // the first change since a freeze
		f.journal.Digest, f.journal.State = "", StageWriting
		if err := f.writeJournal(false); err != nil {
			f.stage.opt.Log.Warn("a staged file's journal still tells of earlier bytes", "id", f.id, "error", err)
		}
	}
}

// follow starts the hasher if it pays. The caller holds mu.
func (f *Staged) follow() {
	if f.hashing != nil || f.spoiled || f.closed || f.contig-f.claimed < hashAhead {
		return
	}
	if f.sum == nil {
		f.sum = sha256.New()
	}
	f.hashing = make(chan struct{})
	go f.hashBehind(f.hashing)
}

// hashBehind feeds sum with what has been written until it has caught up, or
// the hash is spoiled, or somebody else takes over (Freeze, Close).
func (f *Staged) hashBehind(done chan struct{}) {
	defer close(done)
	buf := make([]byte, hashPiece)
	for {
		f.mu.Lock()
		n := min(f.contig-f.claimed, hashPiece)
		if n < hashPiece || f.spoiled || f.frozen || f.closed {
			f.hashing = nil
			f.mu.Unlock()
			return
		}
		off := f.claimed
		f.claimed += n
		f.mu.Unlock()
		if _, err := f.file.ReadAt(buf[:n], off); err != nil {
			// Freeze reads again from the start, and reports what it meets.
			f.mu.Lock()
			f.spoiled = true
			f.hashing = nil
			f.mu.Unlock()
			return
		}
		f.sum.Write(buf[:n])
	}
}

// Sync makes the bytes and the journal survive a power cut.
func (f *Staged) Sync() error {
	if err := f.file.Sync(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.durable || f.dropped {
		return nil
	}
	return f.writeJournal(true)
}

// Frozen is a staged file whose bytes no longer change: the source of a
// push. It is valid until the Staged is thawed or closed.
type Frozen struct {
	file   *os.File
	size   int64
	digest backends.Digest
}

var _ backends.Source = (*Frozen)(nil)

// ReadAt is io.ReaderAt.
func (z *Frozen) ReadAt(p []byte, off int64) (int, error) { return z.file.ReadAt(p, off) }

// Size is in bytes.
func (z *Frozen) Size() int64 { return z.size }

// Digest is the SHA-256 of all bytes.
func (z *Frozen) Digest() backends.Digest { return z.digest }

// Freeze ends writing: later writes get ErrFrozen until Thaw. When it
// returns, bytes and journal are on disk and the digest is known; freezing
// what is frozen gives the same answer again. If it fails or ctx ends, the
// file is not frozen.
func (f *Staged) Freeze(ctx context.Context) (_ *Frozen, err error) {
	select {
	case f.freezing <- struct{}{}:
		defer func() { <-f.freezing }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}

	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil, os.ErrClosed
	}
	again := f.frozen
	f.frozen = true
	hasher, size := f.hashing, f.size
	f.mu.Unlock()
	defer func() {
		if err != nil && !again {
			f.mu.Lock()
			f.frozen = false
			f.mu.Unlock()
		}
	}()

	// From here on nobody writes, and nobody else hashes once the follower
	// is gone, so the hash needs no lock.
	synced := make(chan error, 1)
	go func() { synced <- f.file.Sync() }()
	if hasher != nil {
		<-hasher // at most one hashPiece away
	}
	digest, err := f.finishHash(ctx, size)
	if err != nil {
		return nil, err
	}
	select {
	case err = <-synced:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.journal.State, f.journal.Reason = StageFrozen, ""
	f.journal.Size, f.journal.Digest = size, digest.String()
	if err := f.writeJournal(true); err != nil {
		return nil, err
	}
	return &Frozen{file: f.file, size: size, digest: digest}, nil
}

// finishHash hashes what the follower has not. Only Freeze calls it.
func (f *Staged) finishHash(ctx context.Context, size int64) (backends.Digest, error) {
	if f.spoiled || f.sum == nil {
		f.sum, f.claimed, f.spoiled = sha256.New(), 0, false
	}
	buf := make([]byte, min(hashPiece, max(size-f.claimed, 1)))
	for f.claimed < size {
		if err := ctx.Err(); err != nil {
			return backends.Digest{}, err
		}
		n := min(size-f.claimed, int64(len(buf)))
		if _, err := f.file.ReadAt(buf[:n], f.claimed); err != nil {
			return backends.Digest{}, err
		}
		f.sum.Write(buf[:n])
		f.claimed += n
	}
	return backends.SHA256(f.sum.Sum(nil)), nil
}

// Thaw allows writes again, after a push that failed. The Frozen that Freeze
// returned must no longer be in use. It waits for a Freeze under way.
func (f *Staged) Thaw() {
	f.freezing <- struct{}{}
	defer func() { <-f.freezing }()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozen = false
}

// SetRef says that the bytes will become ref: scratch was renamed to an
// image's name, or a staged image to another.
func (f *Staged) SetRef(ref backends.Ref) error {
	if err := checkImage(ref); err != nil {
		return err
	}
	return f.change(func(j *journal) { j.Ref, j.Name = refJSON(ref), "" })
}

// SetName makes the bytes scratch of that name.
func (f *Staged) SetName(name string) error {
	return f.change(func(j *journal) { j.Ref, j.Name = refJSON{}, name })
}

// checkImage returns an Error of kind Invalid unless ref names an image.
func checkImage(ref backends.Ref) error {
	if ref.IsCollection() {
		return backends.Errorf("stage", ref, backends.Invalid, "no image is named")
	}
	return ref.Check()
}

// Fail notes that the bytes could not be pushed and why; they are kept,
// across restarts, until Drop or another try. err's text must be safe to
// show. Writes stay as they were allowed before.
func (f *Staged) Fail(err error) error {
	return f.change(func(j *journal) { j.State, j.Reason = StageFailed, cut(err.Error(), maxReason) })
}

func (f *Staged) change(edit func(*journal)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.dropped {
		return os.ErrClosed
	}
	edit(&f.journal)
	f.journal.Size = f.size
	return f.writeJournal(true)
}

// Drop removes bytes and journal: the push is acknowledged, or nobody wants
// them. Handles that are open read on until Close. It works after Close too.
func (f *Staged) Drop() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dropped = true
	return f.stage.remove(f.id)
}

// Close releases the lock and the descriptors; the bytes stay unless they
// were dropped. Closing again does nothing.
func (f *Staged) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	hasher := f.hashing
	f.mu.Unlock()
	if hasher != nil {
		<-hasher
	}
	var errs []error
	for _, c := range []*os.File{f.file, f.lock} { // the lock last
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	if f.root != nil {
		errs = append(errs, f.root.Close())
	}
	return errors.Join(errs...)
}
