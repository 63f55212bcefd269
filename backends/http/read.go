package httpindex

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/transport"
)

const (
	opStat = "stat"
	opOpen = "open"
)

// Stat asks for the file's headers: one request if a listing has shown the
// image or its name is the canonical one, else up to seven (fourteen in
// "library"), one for each way to spell it. With a list file it is one to ask
// whether the list changed, and one for the file.
func (b *backend) Stat(ctx context.Context, ref backends.Ref) (backends.Record, error) {
	if err := ref.Check(); err != nil {
		return backends.Record{}, err
	}
	if ref.IsCollection() {
		return b.statCollection(ctx, ref)
	}
	paths, known := b.order(ref), found{}
	if b.list != nil {
		images, err := b.images(ctx, opStat, ref, false)
		switch {
		case ctx.Err() != nil:
			return backends.Record{}, err
		case err != nil: // the record lacks a digest then, and is still right
			b.log.Debug("the list of images cannot be read", "kind", backends.KindOf(err).Error())
		case images[ref].path != "":
			known = images[ref]
			paths = slices.Insert(paths, 0, known.path)
		}
	}
	path, f, err := firstOf(paths, func(path string) (facts, error) { return b.head(ctx, ref, path) })
	if err != nil {
		return backends.Record{}, err
	}
	r := row{}
	if path == known.path && known.row.agrees(f, backends.Digest{}) {
		r = known.row
	}
	return b.remember(ref, path, f, r), nil
}

// firstOf tries paths until one is there. If none is, and one was Denied, it
// is that: some servers do not tell what they hide.
func firstOf[T any](paths []string, try func(path string) (T, error)) (string, T, error) {
	var first error
	for _, path := range paths {
		got, err := try(path)
		if err == nil {
			return path, got, nil
		}
		switch {
		case errors.Is(err, backends.Denied):
			if first == nil || !errors.Is(first, backends.Denied) {
				first = err
			}
		case !errors.Is(err, backends.NotFound):
			return "", got, err
		case first == nil:
			first = err
		}
	}
	var none T
	return "", none, first
}

// head gives the facts of a file.
func (b *backend) head(ctx context.Context, ref backends.Ref, path string) (facts, error) {
	var f facts
	r := transport.Request{
		Op: opStat, Ref: ref, URL: b.at(path),
		Check: func(status int, h http.Header) error {
			f = factsOf(h, status)
			return noPage(opStat, ref, h)
		},
	}
	_, _, err := b.client.Head(ctx, r)
	if !errors.Is(err, backends.Unsupported) {
		return f, err
	}
	// A server without HEAD: the headers of a GET that is not read.
	st, err := b.client.Stream(ctx, r)
	if err == nil {
		_ = st.Close()
	}
	return f, err
}

// headDir asks whether a directory is there.
func (b *backend) headDir(ctx context.Context, ref backends.Ref, dir string) error {
	r := transport.Request{Op: opStat, Ref: ref, URL: b.at(dir)}
	_, _, err := b.client.Head(ctx, r)
	if !errors.Is(err, backends.Unsupported) {
		return err
	}
	st, err := b.client.Stream(ctx, r)
	if err == nil {
		_ = st.Close()
	}
	return err
}

// noPage refuses a web page in the place of an image: what servers send
// for a directory, a login or, with status 200, for what is not there.
func noPage(op string, ref backends.Ref, h http.Header) error {
	kind, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	switch strings.ToLower(strings.TrimSpace(kind)) {
	case "text/html", "application/xhtml+xml":
		return &backends.Error{Op: op, Ref: ref, Kind: backends.NotFound, Err: errors.New("the server answers with a web page")}
	}
	return nil
}

// paths gives where to look for rec: where it was seen, if its record says.
func (b *backend) paths(rec backends.Record) []string {
	if path := rec.Attributes["path"]; slices.Contains(candidates(rec.Ref), path) {
		return []string{path}
	}
	return b.order(rec.Ref)
}

// reading is the request for rec's bytes at path. The answer's header is
// checked against the version before any byte is used.
func (b *backend) reading(rec backends.Record, path string, got *facts) transport.Request {
	return transport.Request{
		Op: opOpen, Ref: rec.Ref, URL: b.at(path),
		Check: func(status int, h http.Header) error {
			if err := noPage(opOpen, rec.Ref, h); err != nil {
				return err
			}
			*got = factsOf(h, status)
			return got.verify(opOpen, rec)
		},
	}
}

// Open streams the file.
func (b *backend) Open(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
	if err := checkImage(rec); err != nil {
		return nil, err
	}
	var got facts
	_, st, err := firstOf(b.paths(rec), func(path string) (*backends.Stream, error) {
		return b.client.Stream(ctx, b.reading(rec, path, &got))
	})
	if err != nil {
		return nil, err
	}
	st.Validator = got.validator()
	return st, nil
}

// OpenRange asks for a range, pinned to the version where it can be.
func (b *backend) OpenRange(ctx context.Context, rec backends.Record, off, n int64) (*backends.Stream, error) {
	if err := checkImage(rec); err != nil {
		return nil, err
	}
	var got facts
	_, st, err := firstOf(b.paths(rec), func(path string) (*backends.Stream, error) {
		return b.client.Range(ctx, b.reading(rec, path, &got), off, n, pin(rec.Version))
	})
	if err != nil {
		return nil, err
	}
	st.Validator = got.validator()
	return st, nil
}

func checkImage(rec backends.Record) error {
	if err := rec.Check(); err != nil {
		return err
	}
	if rec.IsCollection() {
		return &backends.Error{Op: opOpen, Ref: rec.Ref, Kind: backends.Invalid, Err: errors.New("it is a collection")}
	}
	return nil
}
