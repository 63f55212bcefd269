package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/cache"
)

func (a *app) pullCommand() *cobra.Command {
	var output string
	var force bool
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Fetch an image into a file",
		Long: `Fetch an image into a file, through the cache. The file appears under its name
only when it is whole and its digest is right. Without --output the file is called
COLLECTION-IMAGE:TAG.sif, as the Python client calls it.

` + exitCodes,
		Example: `  sregistry-fs pull registry://vsoch/hello-world:latest
  sregistry-fs pull -o hello.sif hub://vsoch/hello-world
  sregistry-fs pull --backend dir:/data/images library/tool:1.2`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			onPath := func(path string) error { return a.pullPath(path, output, force) }
			return a.withSession(cmd.Context(), args[0], onPath, func(s *session, subj subject) error {
				return a.pull(cmd.Context(), s, subj, output, force)
			})
		},
	}
	a.cfg.registryFlags(cmd.Flags(), true, "")
	cmd.Flags().StringVarP(&output, "output", "o", "", "the `FILE` or directory to write")
	cmd.Flags().BoolVar(&force, "force", false, "replace a file that exists")
	return cmd
}

func (a *app) pull(ctx context.Context, s *session, subj subject, output string, force bool) error {
	ref, version, err := subj.image()
	if err != nil {
		return err
	}
	target, err := pullTarget(output, defaultFile(ref, version), force)
	if err != nil {
		return err
	}
	rec, err := s.find(ctx, ref, version)
	if err != nil {
		return err
	}
	blob, err := s.cache.Store.Open(ctx, rec)
	if err != nil {
		return err
	}
	defer blob.Close()
	progress := a.progress("pull " + rec.Ref.String())
	err = blob.Wait(ctx, progress.report)
	progress.done()
	if err != nil {
		return err
	}
	err = writeAside(target, force, func(f *os.File) error { return copyBlob(ctx, f, blob) })
	if err != nil {
		return fmt.Errorf("pull %s: %w", rec.Ref, err)
	}
	fmt.Fprintln(a.stdout, target)
	return nil
}

// pullPath copies an image out of a mount.
func (a *app) pullPath(path, output string, force bool) error {
	ref, version, err := backends.ParseRef(filepath.Join(filepath.Base(filepath.Dir(path)), filepath.Base(path)))
	if err != nil {
		return err
	}
	target, err := pullTarget(output, defaultFile(ref, version), force)
	if err != nil {
		return err
	}
	from, err := os.Open(path)
	if err != nil {
		return mountErr("pull", path, err)
	}
	defer from.Close()
	if err := writeAside(target, force, func(f *os.File) error { _, err := io.Copy(f, from); return err }); err != nil {
		return mountErr("pull", path, err)
	}
	fmt.Fprintln(a.stdout, target)
	return nil
}

// defaultFile is how the Python client names what it pulls:
// collection-image:tag[@version].sif.
func defaultFile(ref backends.Ref, version string) string {
	name := strings.ReplaceAll(ref.String(), "/", "-")
	if version != "" {
		name += "@" + version
	}
	return name + ".sif"
}

// pullTarget settles the file to write before anything is fetched.
func pullTarget(output, name string, force bool) (string, error) {
	target := output
	switch info, err := os.Stat(output); {
	case output == "":
		target = name
	case err == nil && info.IsDir():
		target = filepath.Join(output, name)
	}
	info, err := os.Lstat(target)
	switch {
	case errors.Is(err, os.ErrNotExist):
		_, err := os.Stat(filepath.Dir(target))
		return target, err
	case err != nil:
		return "", err
	case info.IsDir():
		return "", usagef("", "%s is a directory", target)
	case !regular(target):
		return "", usagef("--output names a file or a directory", "%s is no regular file", target)
	case !force:
		return "", existsError(target)
	}
	return target, nil
}

// regular reports whether path is a regular file or a link to one: anything
// else (/dev/null) is not to be replaced by an image, whatever was asked.
func regular(path string) bool {
	info, err := os.Stat(path)
	return errors.Is(err, os.ErrNotExist) || err == nil && info.Mode().IsRegular()
}

func existsError(target string) error {
	return &backends.Error{Op: "write", Kind: backends.Exists, Err: errors.New(target), Hint: "--force replaces it, --output names another file"}
}

// writeAside lets fill write a new file beside target and puts it in place
// when it is whole and on disk: under its own name there is never a part.
// Without force a file that has appeared meanwhile is left alone.
func writeAside(target string, force bool, fill func(*os.File) error) error {
	aside := filepath.Join(filepath.Dir(target), ".sregistry-fs-"+rand.Text()[:10]+".part")
	// An image is a program: executable, as far as the umask lets it.
	f, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o777)
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = putInPlace(aside, target, force)
	}
	if err != nil {
		_ = os.Remove(aside)
	}
	return err
}

func putInPlace(aside, target string, force bool) error {
	if force {
		return os.Rename(aside, target)
	}
	err := unix.Renameat2(unix.AT_FDCWD, aside, unix.AT_FDCWD, target, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS): // a file system without that
		if _, err := os.Lstat(target); err == nil {
			return existsError(target)
		}
		return os.Rename(aside, target)
	case errors.Is(err, unix.EEXIST):
		return existsError(target)
	}
	return err
}

// copyBlob writes the blob's bytes to the start of f; where the file system
// can share blocks, nothing is copied.
func copyBlob(ctx context.Context, f *os.File, blob *cache.Blob) error {
	size := blob.Size()
	var done int64
	if from, ok := blob.File(); ok {
		for in, out := int64(0), int64(0); done < size; {
			n, err := unix.CopyFileRange(int(from.Fd()), &in, int(f.Fd()), &out, int(min(size-done, 64<<20)), 0)
			if err != nil || n == 0 {
				break // the plain way goes on from here, and reports what is wrong
			}
			done += int64(n)
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	buf := make([]byte, 1<<20)
	for done < size {
		n, err := blob.ReadAt(ctx, buf[:min(int64(len(buf)), size-done)], done)
		if _, werr := f.WriteAt(buf[:n], done); werr != nil {
			return werr
		}
		if done += int64(n); done < size && (err != nil || n == 0) {
			return errors.Join(err, io.ErrUnexpectedEOF)
		}
	}
	return nil
}
