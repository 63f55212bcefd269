package cache

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sregistry/sregistry-fs/backends"
)

// The places of the store below its directory. Names are digests and keys
// only: nothing that a registry says becomes a path.
const (
	blobDir    = "blobs/sha256" // <hex>: complete, verified, mode 0400, stamped
	partialDir = "partial"      // <key>[-<pid>-<n>]/{data,map,lock}
	linkDir    = "links"        // <key>: which blob an image's version is
	pinDir     = "pins"         // <key>: keep this image
	damagedDir = "damaged"      // what was found broken, kept for a look
)

// disk is the store's directory. Every path it takes is relative to it and is
// resolved by os.Root, so that no link leads out. Safe for concurrent use, and by
// several processes: each change is one rename, or is guarded by a flock.
type disk struct {
	root *os.Root
	dir  string
	now  func() time.Time
	seq  atomic.Uint64 // for names of files that are written aside
}

// openDisk makes the directory and its parts where they are missing. A
// directory, or a link to one, that belongs to somebody else is refused.
func openDisk(dir string, now func() time.Time) (*disk, error) {
	fail := func(err error) (*disk, error) {
		return nil, &backends.Error{Op: "cache", Kind: backends.KindOf(err), Err: err, Hint: "choose another directory with --cache-dir"}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	if fi, err := os.Lstat(dir); err != nil {
		return fail(err)
	} else if !ours(fi) {
		return fail(fmt.Errorf("%s belongs to another user: %w", dir, os.ErrPermission))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fail(err)
	}
	d := &disk{root: root, dir: dir, now: now}
	for _, sub := range []string{".", "blobs", blobDir, partialDir, linkDir, pinDir, damagedDir} {
		if err := d.ensure(sub); err != nil {
			return fail(errors.Join(err, root.Close()))
		}
	}
	return d, nil
}

// ensure makes one private directory of ours.
func (d *disk) ensure(sub string) error {
	if err := d.root.Mkdir(sub, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	fi, err := d.root.Lstat(sub)
	if err != nil {
		return err
	}
	path := filepath.Join(d.dir, sub)
	switch {
	case !fi.IsDir():
		return fmt.Errorf("%s is not a directory", path)
	case !ours(fi):
		return fmt.Errorf("%s belongs to another user: %w", path, os.ErrPermission)
	case fi.Mode().Perm()&0o077 != 0:
		return d.root.Chmod(sub, 0o700)
	}
	return nil
}

func ours(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// open opens a regular file of ours.
func (d *disk) open(name string, flag int) (*os.File, error) {
	f, err := d.root.OpenFile(name, flag|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && (!fi.Mode().IsRegular() || !ours(fi)) {
		err = fmt.Errorf("%s is not a file of ours: %w", name, os.ErrPermission)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// write makes name hold data by a rename, so that a reader sees the old or
// the new content.
func (d *disk) write(name string, data []byte) error {
	aside := name + d.unique()
	f, err := d.open(aside, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = d.root.Rename(aside, name)
	}
	if err != nil {
		_ = d.root.Remove(aside)
	}
	return err
}

// unique gives a suffix that no other file has: "-<pid>-<n>".
func (d *disk) unique() string {
	return fmt.Sprintf("-%d-%d", os.Getpid(), d.seq.Add(1)<<20|uint64(d.now().UnixNano())&(1<<20-1))
}

// sync makes the names in a directory durable.
func (d *disk) sync(sub string) error {
	f, err := d.root.Open(sub)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// versionKey names (registry, ref, version) on the disk.
func versionKey(registry string, rec backends.Record) string {
	h := sha256.New()
	for _, s := range []string{registry, rec.Collection, rec.Image, rec.Tag, rec.Version} {
		_ = binary.Write(h, binary.LittleEndian, uint64(len(s)))
		_, _ = io.WriteString(h, s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// link says which blob holds the bytes of one version of one image. It is
// written once they were verified, and outlives the blob.
type link struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

// readLink gives the digest and the size an image's version was found to
// have; a link that cannot be read is as good as none.
func (d *disk) readLink(key string) (digest backends.Digest, size int64, ok bool) {
	f, err := d.open(filepath.Join(linkDir, key), os.O_RDONLY)
	if err != nil {
		return backends.Digest{}, 0, false
	}
	defer f.Close()
	var l link
	if json.NewDecoder(io.LimitReader(f, 4096)).Decode(&l) != nil {
		return backends.Digest{}, 0, false
	}
	digest, ok = backends.ParseDigest(l.Digest)
	return digest, l.Size, ok && digest.Algorithm == "sha256" && l.Size >= 0
}

func (d *disk) writeLink(key string, digest backends.Digest, size int64) error {
	data, err := json.Marshal(link{digest.String(), size})
	if err != nil {
		return err
	}
	return d.write(filepath.Join(linkDir, key), data)
}

func blobPath(digest backends.Digest) string { return filepath.Join(blobDir, digest.Hex) }

// stamp is the modification time that marks a verified blob. It follows from
// its digest and size and lies in the past, so that any later write or
// truncation shows in one fstat and no process has to hash a blob that nobody touched.
func stamp(digest backends.Digest, size int64) time.Time {
	sum := sha256.Sum256([]byte(digest.Hex + "/" + strconv.FormatInt(size, 10)))
	const first, span = 1_000_000_000, 500_000_000 // 2001 to 2017, whole seconds
	return time.Unix(first+int64(binary.LittleEndian.Uint64(sum[:8])%span), 0)
}

func stamped(fi os.FileInfo, digest backends.Digest) bool {
	return fi.Mode().IsRegular() && fi.ModTime().Equal(stamp(digest, fi.Size()))
}

// hasBlob reports, without opening it, whether a blob is here and unchanged
// since it was verified.
func (d *disk) hasBlob(digest backends.Digest) (size int64, ok bool) {
	fi, err := d.root.Lstat(blobPath(digest))
	if err != nil || !ours(fi) || !stamped(fi, digest) {
		return 0, false
	}
	return fi.Size(), true
}

// openBlob opens a verified blob with a shared lock, which keeps it from
// eviction until the file is closed. want is its size, or UnknownSize. A
// blob that was touched is hashed again, and moved to damaged/ if it is not what
// its name says: then, and if there is none, the error is os.ErrNotExist.
func (d *disk) openBlob(ctx context.Context, digest backends.Digest, want int64) (*os.File, int64, error) {
	f, err := d.open(blobPath(digest), os.O_RDONLY)
	if err != nil {
		return nil, 0, err
	}
	size, err := d.checkBlob(ctx, f, digest, want)
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	_ = d.root.Chtimes(blobPath(digest), d.now(), time.Time{}) // last used; eviction's order is best effort
	return f, size, nil
}

func (d *disk) checkBlob(ctx context.Context, f *os.File, digest backends.Digest, want int64) (int64, error) {
	if err := flock(f, unix.LOCK_SH); err != nil {
		return 0, fmt.Errorf("%w: being evicted: %w", os.ErrNotExist, err)
	}
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if fi.Sys().(*syscall.Stat_t).Nlink == 0 {
		return 0, os.ErrNotExist // evicted between open and lock
	}
	if stamped(fi, digest) && (want < 0 || fi.Size() == want) {
		return fi.Size(), nil
	}
	h := sha256.New()
	_, err = io.Copy(h, readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return f.Read(p)
	}))
	if err != nil && ctx.Err() != nil {
		return 0, err
	}
	if err == nil && backends.SHA256(h.Sum(nil)) == digest && (want < 0 || fi.Size() == want) {
		return fi.Size(), d.root.Chtimes(blobPath(digest), d.now(), stamp(digest, fi.Size()))
	}
	d.quarantine(blobPath(digest))
	return 0, fmt.Errorf("%w: damaged", os.ErrNotExist)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// quarantine moves a broken file out of the way; sweep bounds how many stay.
func (d *disk) quarantine(name string) {
	if d.root.Rename(name, filepath.Join(damagedDir, filepath.Base(name)+d.unique())) != nil {
		_ = d.root.Remove(name)
	}
}

// install makes a finished file, whose bytes have this digest, the blob. from
// is the store's own path, or an absolute one on the same file system. What it
// returns is open with a shared lock. A blob that is there already wins, and
// from is removed.
func (d *disk) install(ctx context.Context, from string, digest backends.Digest, size int64) (*os.File, error) {
	if f, _, err := d.openBlob(ctx, digest, size); err == nil {
		_ = d.remove(from)
		return f, nil
	}
	f, err := d.open(d.rel(from), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*os.File, error) { return nil, errors.Join(err, f.Close()) }
	// The bytes are durable before the name says that they are whole.
	if err := f.Sync(); err != nil {
		return fail(err)
	}
	if err := f.Chmod(0o400); err != nil {
		return fail(err)
	}
	if err := d.root.Chtimes(d.rel(from), d.now(), stamp(digest, size)); err != nil {
		return fail(err)
	}
	if fi, err := f.Stat(); err != nil {
		return fail(err)
	} else if fi.Size() != size {
		return fail(fmt.Errorf("%s has %d bytes, not %d", from, fi.Size(), size))
	}
	if err := flock(f, unix.LOCK_SH); err != nil {
		return fail(err)
	}
	if err := d.root.Rename(d.rel(from), blobPath(digest)); err != nil {
		return fail(err)
	}
	if err := d.sync(blobDir); err != nil {
		return fail(err)
	}
	return f, nil
}

// rel turns an absolute path below the directory into one that the root takes.
func (d *disk) rel(path string) string {
	if !filepath.IsAbs(path) {
		return path
	}
	if rel, err := filepath.Rel(d.dir, path); err == nil {
		return rel // one that leads out is refused by os.Root
	}
	return path
}

func (d *disk) remove(path string) error { return d.root.Remove(d.rel(path)) }

// flock takes a lock without waiting for it.
func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err != unix.EINTR {
			return err
		}
	}
}

func (d *disk) close() error { return d.root.Close() }
