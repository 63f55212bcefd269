// Package dir makes a local folder a registry: the embedded default, and the
// backend to copy when writing one.
//
// An image is a file collection/image:tag.simg; .sif and .img are read as
// well, and a file without a tag is the tag "latest". Collections are
// folders and may be nested. Images that lie loose in the folder belong to the
// collection "library", together with those of a folder of that name.
// Everything else in the folder is left alone and not shown: other files, names
// that start with a dot, and links that lead out of the folder.
//
// How to read it: Driver and Dial (this file), file names (names.go), the
// five methods of a backend and its readers (list.go, read.go), what it can do
// beyond (write.go, and Tree in list.go).
package dir

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// The capabilities, checked when this compiles.
var _ interface {
	backends.Backend
	backends.RangeOpener
	backends.LocalOpener
	backends.TreeLister
	backends.Pusher
	backends.Deleter
	backends.Mover
} = (*backend)(nil)

// rootOption is the folder, for those who do not want it in the mount spec.
// It is a func because it must be nobody's to change.
func rootOption() backends.Option {
	return backends.Option{
		Name:  "root",
		Env:   "SREGISTRY_DIR_ROOT",
		Usage: "the folder, if the spec does not name it",
	}
}

// Driver is the entry for the table of drivers.
func Driver() backends.Driver {
	return backends.Driver{
		Scheme:   "dir",
		Summary:  "a local folder of images, read in place",
		Location: "/PATH",
		Options:  []backends.Option{rootOption()},
		Dial:     dial,
	}
}

// dial checks that the folder is there: one that is not is more likely
// misspelt than away, and nothing of it could be in the cache.
func dial(ctx context.Context, c backends.Config) (backends.Backend, error) {
	path := c.Location
	if path == "" {
		path = c.Setting(rootOption())
	}
	if path == "" {
		return nil, &backends.Error{
			Op: "dial", Kind: backends.Invalid, Err: errors.New("no folder is named"),
			Hint: "name it in the spec, as in dir:/data/images, or set " + rootOption().Env,
		}
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fault("dial", backends.Ref{}, err)
	}
	b := &backend{path: path, log: c.Log, now: c.Now}
	root, err := b.root(ctx, "dial", backends.Ref{})
	if err != nil {
		return nil, err
	}
	return b, root.Close()
}

// backend is one folder. It holds no state but what it was made with, so it is
// safe for concurrent use, and what other programs do in the folder shows at once.
type backend struct {
	path string // absolute
	log  *slog.Logger
	now  func() time.Time
}

// Close does nothing: every call opens and closes what it needs.
func (b *backend) Close() error { return nil }

// root opens the folder for one call; the caller closes it. Through an
// os.Root no name and no link can lead out of the folder. It is opened anew each
// time, so that a folder that was replaced or mounted over is seen.
func (b *backend) root(ctx context.Context, op string, ref backends.Ref) (*os.Root, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault(op, ref, err)
	}
	root, err := os.OpenRoot(b.path)
	if err != nil {
		e := fault(op, ref, err)
		e.Hint = "look whether the folder " + strconv.Quote(b.path) + " is there and can be read"
		return nil, e
	}
	return root, nil
}

// fault is the one place where an error of the operating system gets its kind.
// The cause stays inside, with its errno.
func fault(op string, ref backends.Ref, err error) *backends.Error {
	var errno syscall.Errno
	kind := backends.KindOf(err)
	switch {
	case kind != backends.Other, errors.Is(err, context.Canceled):
	case !errors.As(err, &errno):
		kind = backends.NotFound // os.Root refuses to follow a link out of the folder
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG):
		kind = backends.NotFound
	case errors.Is(err, syscall.ESTALE): // the folder is on NFS and the file was replaced
		kind = backends.Stale
	case errors.Is(err, syscall.EDQUOT):
		kind = backends.Quota
	case errors.Is(err, syscall.EIO):
		kind = backends.Unavailable
	}
	// The Ref says which; where the folder lies is nobody's business.
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		err = path.Err
	case errors.As(err, &link):
		err = link.Err
	}
	return &backends.Error{Op: op, Ref: ref, Kind: kind, Err: err}
}
