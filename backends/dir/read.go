package dir

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/sregistry/sregistry-fs/backends"
)

// Stat looks at the file.
func (b *backend) Stat(ctx context.Context, ref backends.Ref) (backends.Record, error) {
	if err := ref.Check(); err != nil {
		return backends.Record{}, err
	}
	root, err := b.root(ctx, "stat", ref)
	if err != nil {
		return backends.Record{}, err
	}
	defer func() { _ = root.Close() }() // nothing was written
	if ref.IsCollection() {
		return statCollection(ctx, root, ref)
	}
	f, err := image(root, "stat", ref)
	if err != nil {
		return backends.Record{}, err
	}
	return record(ref, f.info), nil
}

func statCollection(ctx context.Context, root *os.Root, ref backends.Ref) (backends.Record, error) {
	rec := backends.Record{Ref: ref, Size: backends.UnknownSize}
	info, err := root.Stat(ref.Collection)
	switch {
	case err == nil && info.IsDir():
		return rec, nil
	case err == nil:
		err = syscall.ENOTDIR
	case ref.Collection == backends.DefaultCollection && errors.Is(err, fs.ErrNotExist):
		_, _, err = readCollection(ctx, root, ref.Collection) // loose images make it exist
		return rec, err
	}
	return backends.Record{}, fault("stat", ref, err)
}

// OpenLocal opens the file itself.
func (b *backend) OpenLocal(ctx context.Context, rec backends.Record) (*os.File, error) {
	f, _, err := b.open(ctx, rec)
	return f, err
}

// Open streams the file.
func (b *backend) Open(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
	f, info, err := b.open(ctx, rec)
	if err != nil {
		return nil, err
	}
	return stream(ctx, rec, f, info, 0, info.Size()), nil
}

// OpenRange streams a part of the file.
func (b *backend) OpenRange(ctx context.Context, rec backends.Record, off, n int64) (*backends.Stream, error) {
	f, info, err := b.open(ctx, rec)
	if err != nil {
		return nil, err
	}
	if size := info.Size(); off < 0 || n <= 0 || off > size || n > size-off {
		_ = f.Close()
		return nil, backends.Errorf("open", rec.Ref, backends.Invalid, "range %d+%d of %d bytes", off, n, size)
	}
	return stream(ctx, rec, f, info, off, n), nil
}

// open opens the file that counts for rec if it is still rec's version; the
// caller closes it. What counts is the file that was opened, not its name.
func (b *backend) open(ctx context.Context, rec backends.Record) (*os.File, fs.FileInfo, error) {
	if err := rec.Ref.Check(); err != nil {
		return nil, nil, err
	}
	root, err := b.root(ctx, "open", rec.Ref)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = root.Close() }() // nothing was written
	found, err := image(root, "open", rec.Ref)
	if err != nil {
		return nil, nil, err
	}
	// Not blocking, should the file have become a pipe meanwhile.
	f, err := root.OpenFile(found.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fault("open", rec.Ref, err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		err = fault("open", rec.Ref, err)
	case !info.Mode().IsRegular() || version(info) != rec.Version:
		err = &backends.Error{Op: "open", Ref: rec.Ref, Kind: backends.Stale}
	default:
		return f, info, nil
	}
	_ = f.Close() // the error at hand says more
	return nil, nil, err
}

// stream gives n bytes of f from off, and owns f.
func stream(ctx context.Context, rec backends.Record, f *os.File, info fs.FileInfo, off, n int64) *backends.Stream {
	return &backends.Stream{
		ReadCloser: &body{ctx: ctx, ref: rec.Ref, f: f, opened: info, off: off, end: off + n},
		Size:       info.Size(),
		Validator:  rec.Version,
	}
}

// body reads a file as it was when it was opened, or fails.
type body struct {
	ctx      context.Context
	ref      backends.Ref
	f        *os.File
	opened   fs.FileInfo
	off, end int64
}

// Read gives Stale once the file was written to. That it was replaced or
// removed meanwhile does not matter: f is still the old file.
func (b *body) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, fault("open", b.ref, err)
	}
	if b.off == b.end {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.end-b.off)]
	n, err := b.f.ReadAt(p, b.off)
	if err != nil && err != io.EOF {
		return 0, fault("open", b.ref, err)
	}
	now, err := b.f.Stat()
	if err != nil {
		return 0, fault("open", b.ref, err)
	}
	if n < len(p) || now.Size() != b.opened.Size() || !now.ModTime().Equal(b.opened.ModTime()) {
		return 0, backends.Errorf("open", b.ref, backends.Stale, "the file was written to while it was read")
	}
	b.off += int64(n)
	return n, nil
}

// Close closes the file.
func (b *body) Close() error { return b.f.Close() }
