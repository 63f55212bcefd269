package dir

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// Files that are being written have names that no listing shows. One that is
// older than abandoned was left behind by a crash.
const (
	asidePrefix = ".sregistry-fs-"
	asideSuffix = ".part"
	abandoned   = 24 * time.Hour
)

// Push writes the image aside, in the folder where it will be, and renames it
// once it is whole, checked and on the disk. Where a file holds the image
// already, it keeps its name and mode.
func (b *backend) Push(ctx context.Context, ref backends.Ref, src backends.Source, report func(sent int64)) (rec backends.Record, err error) {
	if err := checkImage("push", ref); err != nil {
		return backends.Record{}, err
	}
	root, err := b.root(ctx, "push", ref)
	if err != nil {
		return backends.Record{}, err
	}
	defer func() { _ = root.Close() }() // all that was written is synced
	target, mode, err := place(root, "push", ref, ref.FileName())
	if err != nil {
		return backends.Record{}, err
	}
	folder := path.Dir(target)
	b.sweep(root, folder)

	aside := path.Join(folder, asidePrefix+rand.Text()+asideSuffix)
	f, err := root.OpenFile(aside, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return backends.Record{}, fault("push", ref, err)
	}
	defer func() { _ = f.Close() }() // synced before it counts
	renamed := false
	defer func() {
		if !renamed {
			_ = root.Remove(aside) // if not now, then by a later sweep
		}
	}()
	if mode != 0 {
		if err := f.Chmod(mode); err != nil {
			return backends.Record{}, fault("push", ref, err)
		}
	}
	if err := fill(ctx, ref, f, src, report); err != nil {
		return backends.Record{}, err
	}
	if err := f.Sync(); err != nil {
		return backends.Record{}, fault("push", ref, err)
	}
	if err := ctx.Err(); err != nil {
		return backends.Record{}, fault("push", ref, err)
	}
	if err := root.Rename(aside, target); err != nil {
		return backends.Record{}, fault("push", ref, err)
	}
	renamed = true
	if err := syncFolder(root, folder); err != nil {
		return backends.Record{}, backends.Errorf("push", ref, backends.Unavailable, "the image is stored, but may not survive a power cut: %w", err)
	}
	info, err := f.Stat() // after the rename, which counts as a change
	if err != nil {
		return backends.Record{}, fault("push", ref, err)
	}
	rec = record(ref, info)
	rec.Digest = src.Digest()
	return rec, nil
}

// fill copies src to f and compares the bytes with the digest on their way.
func fill(ctx context.Context, ref backends.Ref, f *os.File, src backends.Source, report func(sent int64)) error {
	hash := sha256.New()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < src.Size(); {
		if err := ctx.Err(); err != nil {
			return fault("push", ref, err)
		}
		part := buf[:min(int64(len(buf)), src.Size()-off)]
		if n, err := src.ReadAt(part, off); n < len(part) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return backends.Errorf("push", ref, backends.Corrupt, "reading the image: %w", err)
		}
		hash.Write(part)
		if _, err := f.Write(part); err != nil {
			return fault("push", ref, err)
		}
		off += int64(len(part))
		if report != nil {
			report(off)
		}
	}
	if sum := backends.SHA256(hash.Sum(nil)); sum != src.Digest() {
		return backends.Errorf("push", ref, backends.Corrupt, "the bytes are %v and should be %v", sum, src.Digest())
	}
	return nil
}

// Delete removes the file. That it still is rec's version is checked, but not in
// one step with removing it. The collection's folder stays.
func (b *backend) Delete(ctx context.Context, rec backends.Record) error {
	if err := checkImage("delete", rec.Ref); err != nil {
		return err
	}
	root, err := b.root(ctx, "delete", rec.Ref)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // all that was written is synced
	f, err := only(root, "delete", rec)
	if err != nil {
		return err
	}
	if err := root.Remove(f.path); err != nil {
		return fault("delete", rec.Ref, err)
	}
	if err := syncFolder(root, path.Dir(f.path)); err != nil {
		return fault("delete", rec.Ref, err)
	}
	return nil
}

// Move renames the file, which keeps its suffix, or takes the name of the file
// that it replaces. Folders are made as needed; the old one stays.
func (b *backend) Move(ctx context.Context, rec backends.Record, to backends.Ref) (backends.Record, error) {
	if err := checkImage("move", rec.Ref); err != nil {
		return backends.Record{}, err
	}
	if err := checkImage("move", to); err != nil {
		return backends.Record{}, err
	}
	root, err := b.root(ctx, "move", rec.Ref)
	if err != nil {
		return backends.Record{}, err
	}
	defer func() { _ = root.Close() }() // all that was written is synced
	from, err := only(root, "move", rec)
	if err != nil {
		return backends.Record{}, err
	}
	if to == rec.Ref {
		return rec, nil
	}
	if info, err := root.Lstat(from.path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return backends.Record{}, backends.Errorf("move", rec.Ref, backends.Unsupported, "it is a link, which may lead nowhere from its new place")
	}
	target, _, err := place(root, "move", to, to.Image+":"+to.Tag+path.Ext(from.path))
	if err != nil {
		return backends.Record{}, err
	}
	if err := root.Rename(from.path, target); err != nil {
		return backends.Record{}, fault("move", rec.Ref, err)
	}
	// Two names of one file: renaming one over the other does nothing.
	if info, err := root.Lstat(from.path); err == nil && os.SameFile(info, from.info) {
		if err := root.Remove(from.path); err != nil {
			return backends.Record{}, fault("move", rec.Ref, err)
		}
	}
	if err := errors.Join(syncFolder(root, path.Dir(target)), syncFolder(root, path.Dir(from.path))); err != nil {
		return backends.Record{}, fault("move", to, err)
	}
	now, err := image(root, "move", to)
	if err != nil {
		return backends.Record{}, err
	}
	return record(to, now.info), nil
}

// checkImage gives Invalid unless ref names an image.
func checkImage(op string, ref backends.Ref) error {
	if err := ref.Check(); err != nil {
		return err
	}
	if ref.IsCollection() {
		return backends.Errorf(op, ref, backends.Invalid, "no image is named")
	}
	return nil
}

// only gives the file of an image that may be changed and that is still
// rec's version. If several files claim the name, none is taken: the next one
// would show in its place, and nobody has seen it.
func only(root *os.Root, op string, rec backends.Record) (file, error) {
	found, err := find(root, op, rec.Ref)
	if err != nil {
		return file{}, err
	}
	now := record(rec.Ref, found[0].info)
	switch {
	case now.Version != rec.Version:
		return file{}, &backends.Error{Op: op, Ref: rec.Ref, Kind: backends.Stale}
	case now.Frozen:
		return file{}, &backends.Error{Op: op, Ref: rec.Ref, Kind: backends.Frozen, Hint: "chmod u+w the file to allow it"}
	case len(found) > 1:
		e := backends.Errorf(op, rec.Ref, backends.Unsupported, "%d files have this name: %q and %q", len(found), found[0].path, found[1].path)
		e.Hint = "remove or rename all but one in the folder itself"
		return file{}, e
	}
	return found[0], nil
}

// place says where to put an image: over the file that holds it now, with
// that one's mode, or as a new file of the given name, with mode 0. It makes
// the folder. An image that is frozen is not to be replaced.
func place(root *os.Root, op string, ref backends.Ref, name string) (target string, mode fs.FileMode, err error) {
	found, err := image(root, op, ref)
	if err == nil {
		if record(ref, found.info).Frozen {
			return "", 0, &backends.Error{Op: op, Ref: ref, Kind: backends.Frozen, Hint: "chmod u+w the file to allow it"}
		}
		return found.path, found.info.Mode().Perm(), nil
	}
	if !errors.Is(err, backends.NotFound) {
		return "", 0, err
	}
	folder := ref.Collection
	if folder == backends.DefaultCollection {
		if _, err := root.Stat(folder); errors.Is(err, fs.ErrNotExist) {
			return name, 0, nil // loose, as in a folder that has no folders
		}
	}
	if err := makeFolders(root, folder); err != nil {
		return "", 0, fault(op, ref, err)
	}
	return path.Join(folder, name), 0, nil
}

// makeFolders makes a folder and those above it, so that they last.
func makeFolders(root *os.Root, folder string) error {
	made := ""
	for part := range strings.SplitSeq(folder, "/") {
		above := made
		made = path.Join(made, part)
		err := root.Mkdir(made, 0o777)
		switch {
		case err == nil:
			if err := syncFolder(root, path.Join(".", above)); err != nil {
				return err
			}
		case !errors.Is(err, fs.ErrExist):
			return err
		}
	}
	return nil
}

// syncFolder makes the names in a folder last through a power cut.
func syncFolder(root *os.Root, folder string) error {
	f, err := root.Open(folder)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only synced
	return f.Sync()
}

// sweep removes what crashes have left in a folder. It is housekeeping: it
// fails silently and is tried again by the next push.
func (b *backend) sweep(root *os.Root, folder string) {
	entries, err := fs.ReadDir(root.FS(), folder)
	if err != nil {
		return
	}
	for _, entry := range entries {
		name := entry.Name()
		if !strings.HasPrefix(name, asidePrefix) || !strings.HasSuffix(name, asideSuffix) {
			continue
		}
		p := path.Join(folder, name)
		if info, err := root.Lstat(p); err == nil && b.now().Sub(info.ModTime()) > abandoned {
			if root.Remove(p) == nil {
				b.log.Info("removed what a crash left behind", "file", p, "age", b.now().Sub(info.ModTime()).Round(time.Hour))
			}
		}
	}
}
