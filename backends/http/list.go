package httpindex

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/sregistry/sregistry-fs/backends"
)

// Bounds of walking the server's directories for Collections.
const (
	maxDepth    = 8     // levels of a collection that are looked for; deeper ones can be named
	maxDirs     = 5_000 // one request each
	walkAtOnce  = 4
	opList      = "list"
	walkTooMany = "the server has more than %d directories"
)

// Collections walks the directories, level by level, and yields those that
// hold images. With a list file it is one request.
func (b *backend) Collections(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if b.list != nil {
			images, err := b.images(ctx, opList, backends.Ref{}, true)
			if err != nil {
				yield("", err)
				return
			}
			names := map[string]bool{}
			for ref := range images {
				names[ref.Collection] = true
			}
			for _, name := range slices.Sorted(maps.Keys(names)) {
				if !yield(name, nil) {
					return
				}
			}
			return
		}
		yielded := map[string]bool{}
		level, count := []string{""}, 1
		for depth := 0; len(level) > 0; depth++ {
			if depth > maxDepth {
				b.log.Warn("directories more than 8 levels down are not listed", "server", b.base.Host, "directories", len(level))
				return
			}
			rows, err := b.walk(ctx, level)
			if err != nil {
				yield("", err)
				return
			}
			var next []string
			for i, dir := range level {
				name := strings.TrimSuffix(dir, "/")
				if dir == "" {
					name = backends.DefaultCollection
				}
				if hasImages(rows[i]) && !yielded[name] {
					yielded[name] = true
					if !yield(name, nil) {
						return
					}
				}
				for _, r := range rows[i] {
					if r.dir && backends.CheckName(r.name) == nil {
						next = append(next, dir+r.name+"/")
					}
				}
			}
			if count += len(next); count > maxDirs {
				yield("", &backends.Error{
					Op: opList, Kind: backends.Unsupported, Err: fmt.Errorf(walkTooMany, maxDirs),
					Hint: "mount a directory further down, or name a file that lists the images with the option list",
				})
				return
			}
			level = next
		}
	}
}

// walk lists the directories of one level. One below the base that may not be
// listed, or is a link to nowhere, is as good as empty.
func (b *backend) walk(ctx context.Context, level []string) ([][]row, error) {
	out := make([][]row, len(level))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(walkAtOnce)
	for i, dir := range level {
		g.Go(func() error {
			rows, err := b.index(ctx, opList, backends.Ref{Collection: strings.TrimSuffix(dir, "/")}, dir)
			if err != nil && dir != "" && passable(err) {
				b.log.Debug("a directory is left out of the listing", "directory", dir, "kind", backends.KindOf(err).Error())
				return nil
			}
			out[i] = rows
			return err
		})
	}
	return out, g.Wait()
}

func passable(err error) bool {
	switch backends.KindOf(err) {
	case backends.NotFound, backends.Denied, backends.Unsupported:
		return true
	}
	return false
}

func hasImages(rows []row) bool {
	return slices.ContainsFunc(rows, func(r row) bool {
		_, _, ok := imageOf(r.name)
		return ok && !r.dir
	})
}

// Images is one request for each directory of the collection: two for
// "library", else one. No file is asked about.
func (b *backend) Images(ctx context.Context, collection string) iter.Seq2[backends.Record, error] {
	ref := backends.Ref{Collection: collection}
	return func(yield func(backends.Record, error) bool) {
		images, err := b.collection(ctx, ref)
		if err != nil {
			yield(backends.Record{}, err)
			return
		}
		for _, r := range sortedRefs(images) {
			if !yield(b.recordOf(r, images[r]), nil) {
				return
			}
		}
	}
}

func (b *backend) collection(ctx context.Context, ref backends.Ref) (map[backends.Ref]found, error) {
	if err := ref.Check(); err != nil {
		return nil, err
	}
	images := map[backends.Ref]found{}
	if b.list != nil {
		all, err := b.images(ctx, opList, ref, true)
		if err != nil {
			return nil, err
		}
		for r, f := range all {
			if r.Collection == ref.Collection {
				images[r] = f
			}
		}
		if len(images) == 0 {
			return nil, &backends.Error{Op: opList, Ref: ref, Kind: backends.NotFound}
		}
		return images, nil
	}
	dirs := dirs(ref.Collection)
	for _, dir := range dirs {
		rows, err := b.index(ctx, opList, ref, dir)
		if err != nil && len(dirs) > 1 && dir != "" && passable(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, r := range rows {
			if !r.dir {
				pick(images, dir+r.name, r)
			}
		}
	}
	return images, nil
}

// Tree is one request: the list file.
func (l listed) Tree(ctx context.Context) iter.Seq2[backends.Record, error] {
	return func(yield func(backends.Record, error) bool) {
		images, err := l.images(ctx, opList, backends.Ref{}, true)
		if err != nil {
			yield(backends.Record{}, err)
			return
		}
		for _, r := range sortedRefs(images) {
			if !yield(l.recordOf(r, images[r]), nil) {
				return
			}
		}
	}
}

// statCollection asks whether a collection exists.
func (b *backend) statCollection(ctx context.Context, ref backends.Ref) (backends.Record, error) {
	if b.list != nil {
		images, err := b.images(ctx, opStat, ref, false)
		if err != nil {
			return backends.Record{}, err
		}
		for r := range images {
			if r.Collection == ref.Collection {
				return backends.Record{Ref: ref}, nil
			}
		}
		return backends.Record{}, &backends.Error{Op: opStat, Ref: ref, Kind: backends.NotFound}
	}
	var err error
	for _, dir := range dirs(ref.Collection) {
		if err = b.headDir(ctx, ref, dir); err == nil {
			return backends.Record{Ref: ref}, nil
		}
		if !errors.Is(err, backends.NotFound) {
			break
		}
	}
	return backends.Record{}, err
}
