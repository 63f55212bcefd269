package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/imagefile"
)

func (a *app) pushCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "push FILE IMAGE",
		Short: "Store a file as an image",
		Long: `Store a file as an image. It returns when the registry has acknowledged the
whole image. A file that is no SIF, squashfs or ext3 image, or an incomplete one, is
refused before anything is sent, unless --any-file allows it.

` + exitCodes,
		Example: `  sregistry-fs push my.sif registry://vsoch/my-tool:1.2
  sregistry-fs push my.sif --backend s3:bucket library/my-tool`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := openImage(args[0], a.cfg.AnyFile)
			if err != nil {
				return err
			}
			defer file.Close()
			onPath := func(path string) error { return a.pushPath(file, path) }
			return a.withSession(cmd.Context(), args[1], onPath, func(s *session, subj subject) error {
				return a.push(cmd.Context(), s, file, subj)
			})
		},
	}
	a.cfg.registryFlags(cmd.Flags(), true, "")
	cmd.Flags().BoolVar(&a.cfg.AnyFile, "any-file", false, "push a file that is no image, too")
	withEnv(cmd.Flags(), "any-file")
	return cmd
}

// openImage opens a file to push and looks at what it is. The caller closes it.
func openImage(path string, anyFile bool) (_ *os.File, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &backends.Error{Op: "push", Kind: backends.KindOf(err), Err: err}
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	refuse := func(why error) (*os.File, error) {
		return nil, &backends.Error{Op: "push", Kind: backends.Invalid, Err: fmt.Errorf("%s: %w", path, why), Hint: "--any-file pushes it as it is"}
	}
	if !info.Mode().IsRegular() {
		return nil, backends.Errorf("push", backends.Ref{}, backends.Invalid, "%s is not a regular file", path)
	}
	if anyFile {
		return f, nil
	}
	switch is, err := imagefile.Identify(f, info.Size()); {
	case errors.Is(err, backends.Invalid):
		return refuse(errors.New("no SIF, squashfs or ext3 image"))
	case err != nil:
		return nil, fmt.Errorf("push %s: %w", path, err)
	case is.Kind == imagefile.Unknown:
		return refuse(errors.New("too short to be an image"))
	case !is.Complete && is.Need > info.Size():
		return refuse(fmt.Errorf("incomplete: a %s of %d bytes, of which %d are here", is.Kind, is.Need, info.Size()))
	case !is.Complete:
		return refuse(fmt.Errorf("incomplete %s", is.Kind))
	}
	return f, nil
}

// source is a file as backends.Source.
type source struct {
	*os.File
	size   int64
	digest backends.Digest
}

func (s *source) Size() int64             { return s.size }
func (s *source) Digest() backends.Digest { return s.digest }

func (a *app) push(ctx context.Context, s *session, f *os.File, subj subject) error {
	ref, version, err := subj.image()
	if err != nil {
		return err
	}
	if version != "" {
		return usagef("", "the registry gives an image its version: leave out @%s", version)
	}
	if s.set.Pusher == nil {
		return &backends.Error{Op: "push", Ref: ref, Kind: backends.ReadOnly, Err: fmt.Errorf("backend %s takes no images", s.spec.driver.Scheme)}
	}
	before, err := f.Stat()
	if err != nil {
		return err
	}
	src := &source{File: f, size: before.Size()}
	if src.digest, err = sum(ctx, f, src.size); err != nil {
		return err
	}
	progress := a.progress("push " + ref.String())
	rec, err := s.cache.Catalog.Push(ctx, ref, src, func(sent int64) { progress.report(sent, src.size) })
	progress.done()
	if err != nil {
		return err
	}
	if after, err := f.Stat(); err != nil || after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
		return backends.Errorf("push", rec.Ref, backends.Corrupt, "%s changed while it was sent; push it again", f.Name())
	}
	s.cache.Catalog.Learn(rec, src.size, src.digest)
	fmt.Fprintf(a.stdout, "%s://%s %s\n", s.spec.driver.Scheme, rec.Ref, src.digest)
	return nil
}

// sum reads the first size bytes of f.
func sum(ctx context.Context, f *os.File, size int64) (backends.Digest, error) {
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; {
		if ctx.Err() != nil {
			return backends.Digest{}, ctx.Err()
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if n == 0 {
			return backends.Digest{}, fmt.Errorf("read %s: %w", f.Name(), errors.Join(err, io.ErrUnexpectedEOF))
		}
		h.Write(buf[:n])
		off += int64(n)
	}
	return backends.SHA256(h.Sum(nil)), nil
}

// pushPath copies the file into a mount; the mount answers close when the
// registry has it.
func (a *app) pushPath(from *os.File, path string) error {
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return mountErr("push", path, err)
	}
	_, err = io.Copy(to, from)
	if err = errors.Join(err, to.Close()); err != nil {
		return mountErr("push", path, err)
	}
	fmt.Fprintln(a.stdout, path)
	return nil
}
