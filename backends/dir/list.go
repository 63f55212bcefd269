package dir

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
)

// Collections walks the folder.
func (b *backend) Collections(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for rec, err := range b.Tree(ctx) {
			if err == nil && !rec.IsCollection() {
				continue
			}
			if !yield(rec.Collection, err) {
				return
			}
		}
	}
}

// Tree walks the folder once. Every folder is a collection, and "library" is
// one if there is such a folder or a loose image. Links to folders are not
// followed. A folder that may not be read is a collection without images here.
func (b *backend) Tree(ctx context.Context) iter.Seq2[backends.Record, error] {
	return func(yield func(backends.Record, error) bool) {
		root, err := b.root(ctx, "list", backends.Ref{})
		if err != nil {
			yield(backends.Record{}, err)
			return
		}
		defer func() { _ = root.Close() }() // nothing was written
		loose, names, err := readFolder(ctx, root, backends.Ref{}, ".")
		if err != nil {
			yield(backends.Record{}, err)
			return
		}
		if len(loose) > 0 && !slices.Contains(names, backends.DefaultCollection) {
			names = append(names, backends.DefaultCollection)
		}
		for _, name := range names {
			if !walk(ctx, root, name, yield) {
				return
			}
		}
	}
}

// walk yields a collection, its images and the collections below it. It
// reports whether to go on.
func walk(ctx context.Context, root *os.Root, collection string, yield func(backends.Record, error) bool) bool {
	recs, below, err := readCollection(ctx, root, collection)
	switch {
	case errors.Is(err, backends.NotFound): // removed while we walk
		return true
	case errors.Is(err, backends.Denied):
	case err != nil:
		yield(backends.Record{}, err)
		return false
	}
	if !yield(backends.Record{Ref: backends.Ref{Collection: collection}, Size: backends.UnknownSize}, nil) {
		return false
	}
	for _, rec := range recs {
		if !yield(rec, nil) {
			return false
		}
	}
	for _, name := range below {
		if !walk(ctx, root, path.Join(collection, name), yield) {
			return false
		}
	}
	return true
}

// Images reads the collection's folder. The records are full: reading a folder
// tells all that there is.
func (b *backend) Images(ctx context.Context, collection string) iter.Seq2[backends.Record, error] {
	return func(yield func(backends.Record, error) bool) {
		recs, err := b.images(ctx, collection)
		if err != nil {
			yield(backends.Record{}, err)
			return
		}
		for _, rec := range recs {
			if !yield(rec, nil) {
				return
			}
		}
	}
}

func (b *backend) images(ctx context.Context, collection string) ([]backends.Record, error) {
	if err := backends.CheckCollection(collection); err != nil {
		return nil, err
	}
	root, err := b.root(ctx, "list", backends.Ref{Collection: collection})
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }() // nothing was written
	recs, _, err := readCollection(ctx, root, collection)
	return recs, err
}

// readCollection gives a collection's images and the names of the collections
// right below it, or NotFound.
func readCollection(ctx context.Context, root *os.Root, collection string) (recs []backends.Record, below []string, err error) {
	at := backends.Ref{Collection: collection}
	best := map[backends.Ref]int{} // the rank of the file that counts, so far
	exists := false
	for i, folder := range folders(collection) {
		files, names, err := readFolder(ctx, root, at, folder)
		switch {
		case errors.Is(err, backends.NotFound):
			continue
		case err != nil:
			return nil, nil, err
		}
		if folder != "." {
			below = names
			exists = true
		}
		for _, f := range files {
			image, tag, rank, _ := parse(path.Base(f.path))
			ref := backends.Ref{Collection: collection, Image: image, Tag: tag}
			rank += 100 * i // an earlier folder counts first
			if was, ok := best[ref]; ok {
				if was < rank {
					continue
				}
				recs = slices.DeleteFunc(recs, func(r backends.Record) bool { return r.Ref == ref })
			}
			best[ref] = rank
			recs = append(recs, record(ref, f.info))
		}
	}
	if !exists && len(recs) == 0 {
		return nil, nil, &backends.Error{Op: "list", Ref: at, Kind: backends.NotFound}
	}
	return recs, below, nil
}

// readFolder gives the image files in a folder, and the names of the folders
// right below it.
func readFolder(ctx context.Context, root *os.Root, at backends.Ref, folder string) (files []file, below []string, err error) {
	entries, err := fs.ReadDir(root.FS(), folder)
	if err != nil {
		return nil, nil, fault("list", at, err)
	}
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return nil, nil, fault("list", at, err)
		}
		name := entry.Name()
		if entry.IsDir() {
			if !strings.HasPrefix(name, ".") {
				below = append(below, name)
			}
			continue
		}
		if _, _, _, ok := parse(name); !ok {
			continue
		}
		p := path.Join(folder, name)
		info, err := root.Stat(p)
		if err != nil {
			e := fault("list", at, err)
			if e.Kind == backends.NotFound || e.Kind == backends.Denied {
				continue // just removed, or a link to nothing that is ours
			}
			return nil, nil, e
		}
		if info.Mode().IsRegular() {
			files = append(files, file{p, info})
		}
	}
	return files, below, nil
}
