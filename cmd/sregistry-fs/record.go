package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/imagefile"
	"github.com/sregistry/sregistry-fs/cache"
	"github.com/sregistry/sregistry-fs/fs"
)

// inspectLimit bounds how long record reads in the image itself.
const inspectLimit = 15 * time.Second

func (a *app) recordCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "record IMAGE",
		Short: "Show what is known of an image, as JSON",
		Long: `Show what is known of an image, as JSON in the shape of the Python client's
get_metadata. Labels, definition file and run script are read from the image itself
where that needs no download of the whole.

` + exitCodes,
		Example: `  sregistry-fs record registry://vsoch/hello-world:latest
  sregistry-fs record /mnt/images/vsoch/hello-world:latest.simg`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSession(cmd.Context(), args[0], a.recordPath, func(s *session, subj subject) error {
				ref, version, err := subj.image()
				if err != nil {
					return err
				}
				rec, err := s.find(cmd.Context(), ref, version)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.stdout, "%s\n", fs.Document(s.spec.driver.Scheme, rec, s.inspect(cmd.Context(), rec)))
				return err
			})
		},
	}
	a.cfg.registryFlags(cmd.Flags(), true, "")
	return cmd
}

// recordPath prints the record that the mount itself shows.
func (a *app) recordPath(path string) error {
	const name = "user.sregistry.record"
	buf := make([]byte, 64<<10) // the most that Linux lets an attribute have
	n, err := unix.Getxattr(path, name, buf)
	if err != nil {
		if _, statErr := os.Stat(path); statErr != nil {
			err = statErr
		}
		return mountErr("record", path, err)
	}
	_, err = fmt.Fprintf(a.stdout, "%s\n", buf[:n])
	return err
}

// inspect reads what the image says of itself, or gives nil where that
// would take a download.
func (s *session) inspect(ctx context.Context, rec backends.Record) *imagefile.Inspect {
	if _, _, here := s.cache.Store.Cached(rec); !here && !s.cache.Ranges() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, inspectLimit)
	defer cancel()
	blob, err := s.cache.Store.Open(ctx, rec)
	if err != nil {
		s.log.Debug("the image's own data was not read", "image", rec.Ref.String(), "error", err)
		return nil
	}
	i, err := imagefile.ReadInspect(ctx, blobReader{ctx, blob}, blob.Size())
	if err = errors.Join(err, blob.Close()); err != nil {
		s.log.Debug("the image's own data was not read", "image", rec.Ref.String(), "error", err)
		return nil
	}
	return &i
}

// blobReader reads a blob under one context.
type blobReader struct {
	ctx  context.Context
	blob *cache.Blob
}

func (r blobReader) ReadAt(p []byte, off int64) (int, error) {
	if off >= r.blob.Size() {
		return 0, io.EOF
	}
	return r.blob.ReadAt(r.ctx, p, off)
}
