package backendtest

import (
	"context"
	"io"
	"iter"
	"os"

	"github.com/sregistry/sregistry-fs/backends"
)

// Method names a method of a backend or of a capability, as it is spelled there.
type Method string

// The methods.
const (
	Collections Method = "Collections"
	Images      Method = "Images"
	Tree        Method = "Tree"
	Stat        Method = "Stat"
	Open        Method = "Open"
	OpenRange   Method = "OpenRange"
	OpenLocal   Method = "OpenLocal"
	Push        Method = "Push"
	Delete      Method = "Delete"
	Move        Method = "Move"
)

// call is one call of a method, as the wrappers see it.
type call interface {
	// before may refuse the call.
	before(ctx context.Context) error
	// item sees each pair of a listing, with rec's Ref being a collection
	// for Collections, and may end the listing with an error.
	item(ctx context.Context, rec backends.Record) error
	// read may change or end what a stream gives, or what a push reads of its
	// source: it is called after n bytes at off were read to p.
	read(ctx context.Context, p []byte, off int64, n int, err error) (int, error)
	// after sees what the call returned and may replace the error.
	after(ctx context.Context, rec backends.Record, err error) error
}

// wrap forwards s and its capabilities, each call seen by what enter gives.
// A capability that s lacks stays absent.
func wrap(s backends.Set, enter func(m Method, ref backends.Ref) call) backends.Set {
	w := &wrapped{s: s, enter: enter}
	out := backends.Set{Backend: w, MinListAge: s.MinListAge}
	if s.Ranges != nil {
		out.Ranges = w
	}
	if s.Pusher != nil {
		out.Pusher = w
	}
	if s.Deleter != nil {
		out.Deleter = w
	}
	if s.Mover != nil {
		out.Mover = w
	}
	if s.Local != nil {
		out.Local = w
	}
	if s.Tree != nil {
		out.Tree = w
	}
	return out
}

// wrapped is given out by its Set only, which hides what s has not.
type wrapped struct {
	s     backends.Set
	enter func(m Method, ref backends.Ref) call
}

func (w *wrapped) Collections(ctx context.Context) iter.Seq2[string, error] {
	inner := w.s.Collections(ctx)
	return func(yield func(string, error) bool) {
		records := func(yield func(backends.Record, error) bool) {
			inner(func(name string, err error) bool {
				return yield(backends.Record{Ref: backends.Ref{Collection: name}}, err)
			})
		}
		list(ctx, w.enter(Collections, backends.Ref{}), records, func(rec backends.Record, err error) bool {
			return yield(rec.Collection, err)
		})
	}
}

func (w *wrapped) Images(ctx context.Context, collection string) iter.Seq2[backends.Record, error] {
	inner := w.s.Images(ctx, collection)
	return func(yield func(backends.Record, error) bool) {
		list(ctx, w.enter(Images, backends.Ref{Collection: collection}), inner, yield)
	}
}

func (w *wrapped) Tree(ctx context.Context) iter.Seq2[backends.Record, error] {
	inner := w.s.Tree.Tree(ctx)
	return func(yield func(backends.Record, error) bool) {
		list(ctx, w.enter(Tree, backends.Ref{}), inner, yield)
	}
}

// list passes a listing on without hiding how it behaves: what it yields after its
// consumer has stopped is still passed on.
func list(ctx context.Context, c call, seq iter.Seq2[backends.Record, error], yield func(backends.Record, error) bool) {
	if err := c.before(ctx); err != nil {
		yield(backends.Record{}, c.after(ctx, backends.Record{}, err))
		return
	}
	ended := false
	seq(func(rec backends.Record, err error) bool {
		if err == nil {
			err = c.item(ctx, rec)
		}
		if err != nil {
			ended = true
			yield(backends.Record{}, c.after(ctx, backends.Record{}, err))
			return false
		}
		return yield(rec, nil)
	})
	if ended {
		return
	}
	if err := c.after(ctx, backends.Record{}, nil); err != nil {
		yield(backends.Record{}, err)
	}
}

func (w *wrapped) Stat(ctx context.Context, ref backends.Ref) (backends.Record, error) {
	return one(ctx, w.enter(Stat, ref), func() (backends.Record, error) { return w.s.Stat(ctx, ref) })
}

func one(ctx context.Context, c call, f func() (backends.Record, error)) (backends.Record, error) {
	if err := c.before(ctx); err != nil {
		return backends.Record{}, c.after(ctx, backends.Record{}, err)
	}
	rec, err := f()
	if err := c.after(ctx, rec, err); err != nil {
		return backends.Record{}, err
	}
	return rec, nil
}

func (w *wrapped) Open(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
	return stream(ctx, w.enter(Open, rec.Ref), func() (*backends.Stream, error) { return w.s.Open(ctx, rec) })
}

func (w *wrapped) OpenRange(ctx context.Context, rec backends.Record, off, n int64) (*backends.Stream, error) {
	return stream(ctx, w.enter(OpenRange, rec.Ref), func() (*backends.Stream, error) { return w.s.Ranges.OpenRange(ctx, rec, off, n) })
}

func stream(ctx context.Context, c call, f func() (*backends.Stream, error)) (*backends.Stream, error) {
	if err := c.before(ctx); err != nil {
		return nil, c.after(ctx, backends.Record{}, err)
	}
	s, err := f()
	if err := c.after(ctx, backends.Record{}, err); err != nil {
		if s != nil {
			_ = s.Close()
		}
		return nil, err
	}
	t := *s
	t.ReadCloser = &wrappedBody{ReadCloser: s.ReadCloser, ctx: ctx, c: c}
	return &t, nil
}

type wrappedBody struct {
	io.ReadCloser
	ctx context.Context
	c   call
	off int64
}

func (b *wrappedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	n, err = b.c.read(b.ctx, p, b.off, n, err)
	b.off += int64(n)
	return n, err
}

func (w *wrapped) OpenLocal(ctx context.Context, rec backends.Record) (*os.File, error) {
	c := w.enter(OpenLocal, rec.Ref)
	if err := c.before(ctx); err != nil {
		return nil, c.after(ctx, backends.Record{}, err)
	}
	f, err := w.s.Local.OpenLocal(ctx, rec)
	if err := c.after(ctx, backends.Record{}, err); err != nil {
		if f != nil {
			_ = f.Close()
		}
		return nil, err
	}
	return f, nil
}

func (w *wrapped) Push(ctx context.Context, ref backends.Ref, src backends.Source, report func(sent int64)) (backends.Record, error) {
	c := w.enter(Push, ref)
	return one(ctx, c, func() (backends.Record, error) {
		return w.s.Pusher.Push(ctx, ref, wrappedSource{Source: src, ctx: ctx, c: c}, report)
	})
}

type wrappedSource struct {
	backends.Source
	ctx context.Context
	c   call
}

func (s wrappedSource) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.Source.ReadAt(p, off)
	return s.c.read(s.ctx, p, off, n, err)
}

func (w *wrapped) Delete(ctx context.Context, rec backends.Record) error {
	_, err := one(ctx, w.enter(Delete, rec.Ref), func() (backends.Record, error) {
		return backends.Record{}, w.s.Deleter.Delete(ctx, rec)
	})
	return err
}

func (w *wrapped) Move(ctx context.Context, rec backends.Record, to backends.Ref) (backends.Record, error) {
	return one(ctx, w.enter(Move, rec.Ref), func() (backends.Record, error) { return w.s.Mover.Move(ctx, rec, to) })
}

func (w *wrapped) Close() error { return w.s.Close() }
