package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/sregistry/sregistry-fs/backends"
)

func (a *app) lsCommand() *cobra.Command {
	var long bool
	cmd := &cobra.Command{
		Use:   "ls [CLIENT://][COLLECTION] | PATH",
		Short: "List collections, or the images of one",
		Long: `List the collections of a registry, or the images of a collection. With the
name of an image, its tags are listed. Names of collections end in "/".

` + exitCodes,
		Example: `  sregistry-fs ls registry://
  sregistry-fs ls -l registry://vsoch
  sregistry-fs ls --backend dir:/data/images library
  sregistry-fs ls /mnt/images/vsoch`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := strings.Join(args, "")
			return a.withSession(cmd.Context(), name, a.lsPath, func(s *session, subj subject) error {
				lines, err := s.list(cmd.Context(), subj.name)
				if err != nil {
					return err
				}
				return a.printList(lines, long)
			})
		},
	}
	a.cfg.registryFlags(cmd.Flags(), true, "")
	cmd.Flags().BoolVarP(&long, "long", "l", false, "with size, date and digest")
	return cmd
}

// list gives what a name stands for: every collection ("" names all), the
// sub-collections and images of one, or the tags of an image.
func (s *session) list(ctx context.Context, name string) ([]backends.Record, error) {
	all, err := s.cache.Catalog.Collections(ctx)
	if err != nil {
		return nil, err
	}
	var lines []backends.Record
	for _, c := range all {
		if name == "" || strings.HasPrefix(c, name+"/") {
			lines = append(lines, backends.Record{Ref: backends.Ref{Collection: c}, Size: backends.UnknownSize})
		}
	}
	if name == "" {
		return lines, nil
	}
	images, err := s.cache.Catalog.Images(ctx, name)
	switch {
	case err == nil:
		return append(lines, images...), nil
	case !errors.Is(err, backends.NotFound):
		return nil, err
	case len(lines) > 0:
		return lines, nil
	}
	return s.tags(ctx, name, err)
}

// tags lists the images that name means when it is no collection; missing is
// the error if there are none either.
func (s *session) tags(ctx context.Context, name string, missing error) ([]backends.Record, error) {
	ref, version, err := backends.ParseRef(name)
	if err != nil {
		return nil, missing
	}
	if version != "" || strings.Contains(name, ":") {
		rec, err := s.find(ctx, ref, version)
		if err != nil {
			return nil, err
		}
		return []backends.Record{rec}, nil
	}
	images, err := s.cache.Catalog.Images(ctx, ref.Collection)
	if errors.Is(err, backends.NotFound) {
		return nil, missing
	}
	images = slices.DeleteFunc(slices.Clone(images), func(r backends.Record) bool { return r.Image != ref.Image })
	if err == nil && len(images) == 0 {
		return nil, missing
	}
	return images, err
}

func (a *app) printList(lines []backends.Record, long bool) error {
	out := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range lines {
		name := r.Ref.String()
		if r.IsCollection() {
			name += "/"
		}
		if !long {
			fmt.Fprintln(out, name)
			continue
		}
		size, created := "-", "-"
		if r.Size != backends.UnknownSize {
			size = humanize.IBytes(uint64(r.Size))
		}
		if !r.Created.IsZero() {
			created = r.Created.UTC().Format(time.DateOnly)
		}
		digest := r.Digest.String()
		if digest == "" {
			digest = "-"
		}
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\n", size, created, name, digest)
	}
	return out.Flush()
}

// lsPath lists a directory of a mount by its names, as ls -p does.
func (a *app) lsPath(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return mountErr("list", path, err)
	}
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() {
			name += "/"
		}
		fmt.Fprintln(a.stdout, name)
	}
	return nil
}

// mountErr explains a failure below a mount, whose log knows more.
func mountErr(op, path string, err error) error {
	e := &backends.Error{Op: op, Kind: backends.KindOf(err), Err: err}
	if e.Kind == backends.Other {
		e.Hint = "the log of the mount at " + mountPointOf(path) + " says why"
	}
	return e
}

func mountPointOf(path string) string {
	m, _ := mountOf(path)
	return m.point
}
