// Package mem is a registry in memory: the honest fake that tests are written
// against. It keeps every promise of package backends and has every
// capability but local files; what a test wants to be missing is switched off
// in Options.
package mem

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
)

// Options say what the registry is like. The zero value is a registry that
// tells everything and can do everything.
type Options struct {
	// NoRanges, NoPush, NoDelete, NoMove and NoTree leave that capability
	// out of Set.
	NoRanges, NoPush, NoDelete, NoMove, NoTree bool
	// NoSize leaves sizes unknown, in records and in streams.
	NoSize bool
	// NoDigest leaves digests out of records and streams.
	NoDigest bool
	// Sparse makes listings tell names and versions only.
	Sparse bool
	// LowerCase makes the registry spell every name in lower case.
	LowerCase bool
	// MinListAge is the registry's own shortest age of a listing.
	MinListAge time.Duration
	// Now is the clock of Record.Created; nil means time.Now.
	Now func() time.Time
}

// Registry is the registry and the backend for it in one. Safe for concurrent
// use. Besides the backend's methods it has those that act on the registry
// behind the backend's back: Put, Remove, Freeze and MakeCollection.
type Registry struct {
	o Options

	mu          sync.RWMutex // guards the two maps; never held across a caller's code
	images      map[backends.Ref]image
	collections map[string]bool // also those without images
}

// image is immutable once stored; a change stores another one.
type image struct {
	data   []byte
	rec    backends.Record // full
	frozen bool
}

// New makes an empty registry.
func New(o Options) *Registry {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Registry{o: o, images: map[backends.Ref]image{}, collections: map[string]bool{}}
}

// Set gives the registry with the capabilities that Options leave it.
func (r *Registry) Set() backends.Set {
	s := backends.Probe(r)
	if r.o.NoRanges {
		s.Ranges = nil
	}
	if r.o.NoPush {
		s.Pusher = nil
	}
	if r.o.NoDelete {
		s.Deleter = nil
	}
	if r.o.NoMove {
		s.Mover = nil
	}
	if r.o.NoTree {
		s.Tree = nil
	}
	return s
}

// MinListAge is Options.MinListAge.
func (r *Registry) MinListAge() time.Duration { return r.o.MinListAge }

// Close does nothing.
func (r *Registry) Close() error { return nil }

// Put stores an image, also over a frozen one, and gives its full record.
// data must not change afterwards.
func (r *Registry) Put(ref backends.Ref, data []byte) backends.Record {
	img := r.imageOf(ref, data)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.store(img)
	return img.rec
}

// PutLabels is Put with labels and attributes in the record.
func (r *Registry) PutLabels(ref backends.Ref, data []byte, labels, attributes map[string]string) backends.Record {
	img := r.imageOf(ref, data)
	img.rec.Labels, img.rec.Attributes = labels, attributes
	r.mu.Lock()
	defer r.mu.Unlock()
	r.store(img)
	return img.rec
}

// Remove takes an image away, frozen or not, and reports whether it was there.
func (r *Registry) Remove(ref backends.Ref) bool {
	ref = r.spell(ref)
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.images[ref]
	delete(r.images, ref)
	return ok
}

// Freeze protects an image from change, or no longer; it reports whether the
// image is there.
func (r *Registry) Freeze(ref backends.Ref, frozen bool) bool {
	ref = r.spell(ref)
	r.mu.Lock()
	defer r.mu.Unlock()
	img, ok := r.images[ref]
	if ok {
		img.frozen, img.rec.Frozen = frozen, frozen
		r.images[ref] = img
	}
	return ok
}

// MakeCollection makes a collection that may stay empty.
func (r *Registry) MakeCollection(name string) {
	name = r.spell(backends.Ref{Collection: name}).Collection
	r.mu.Lock()
	defer r.mu.Unlock()
	r.collections[name] = true
}

// Bytes gives an image's bytes, which must not be changed.
func (r *Registry) Bytes(ref backends.Ref) ([]byte, bool) {
	ref = r.spell(ref)
	r.mu.RLock()
	defer r.mu.RUnlock()
	img, ok := r.images[ref]
	return img.data, ok
}

// spell gives the registry's own spelling of a ref.
func (r *Registry) spell(ref backends.Ref) backends.Ref {
	if r.o.LowerCase {
		ref.Collection, ref.Image, ref.Tag = strings.ToLower(ref.Collection), strings.ToLower(ref.Image), strings.ToLower(ref.Tag)
	}
	return ref
}

func (r *Registry) imageOf(ref backends.Ref, data []byte) image {
	sum := sha256.Sum256(data)
	digest := backends.SHA256(sum[:])
	rec := backends.Record{
		Ref: r.spell(ref), Version: digest.Hex[:16], Digest: digest,
		Size: int64(len(data)), Created: r.o.Now(), Full: true,
	}
	if r.o.NoSize {
		rec.Size = backends.UnknownSize
	}
	if r.o.NoDigest {
		rec.Digest = backends.Digest{}
	}
	return image{data: data, rec: rec}
}

// store puts img in its place. The caller holds mu.
func (r *Registry) store(img image) {
	r.images[img.rec.Ref] = img
	r.collections[img.rec.Collection] = true
}

// listed is what a listing tells of an image.
func (r *Registry) listed(rec backends.Record) backends.Record {
	if r.o.Sparse {
		return backends.Record{Ref: rec.Ref, Version: rec.Version, Size: backends.UnknownSize, Frozen: rec.Frozen}
	}
	return rec
}

// Collections yields the collections in order of name.
func (r *Registry) Collections(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		r.mu.RLock()
		names := slices.Sorted(maps.Keys(r.collections))
		r.mu.RUnlock()
		for _, name := range names {
			if err := ended(ctx, "list", backends.Ref{}); err != nil {
				yield("", err)
				return
			}
			if !yield(name, nil) {
				return
			}
		}
	}
}

// Images yields the images of a collection in order of name.
func (r *Registry) Images(ctx context.Context, collection string) iter.Seq2[backends.Record, error] {
	return func(yield func(backends.Record, error) bool) {
		at := r.spell(backends.Ref{Collection: collection})
		r.mu.RLock()
		known := r.collections[at.Collection]
		var recs []backends.Record
		for ref, img := range r.images {
			if ref.Collection == at.Collection {
				recs = append(recs, r.listed(img.rec))
			}
		}
		r.mu.RUnlock()
		if err := ended(ctx, "list", at); err != nil {
			yield(backends.Record{}, err)
			return
		}
		if !known {
			yield(backends.Record{}, &backends.Error{Op: "list", Ref: at, Kind: backends.NotFound})
			return
		}
		yieldSorted(ctx, recs, yield)
	}
}

// Tree yields every collection and every image.
func (r *Registry) Tree(ctx context.Context) iter.Seq2[backends.Record, error] {
	return func(yield func(backends.Record, error) bool) {
		r.mu.RLock()
		var recs []backends.Record
		for name := range r.collections {
			recs = append(recs, backends.Record{Ref: backends.Ref{Collection: name}, Size: backends.UnknownSize})
		}
		for _, img := range r.images {
			recs = append(recs, r.listed(img.rec))
		}
		r.mu.RUnlock()
		yieldSorted(ctx, recs, yield)
	}
}

func yieldSorted(ctx context.Context, recs []backends.Record, yield func(backends.Record, error) bool) {
	slices.SortFunc(recs, func(a, b backends.Record) int { return strings.Compare(a.Ref.String(), b.Ref.String()) })
	for _, rec := range recs {
		if err := ended(ctx, "list", backends.Ref{Collection: rec.Collection}); err != nil {
			yield(backends.Record{}, err)
			return
		}
		if !yield(rec, nil) {
			return
		}
	}
}

// Stat gives the full record.
func (r *Registry) Stat(ctx context.Context, ref backends.Ref) (backends.Record, error) {
	if err := ended(ctx, "stat", ref); err != nil {
		return backends.Record{}, err
	}
	ref = r.spell(ref)
	r.mu.RLock()
	defer r.mu.RUnlock()
	if ref.IsCollection() {
		if !r.collections[ref.Collection] {
			return backends.Record{}, &backends.Error{Op: "stat", Ref: ref, Kind: backends.NotFound}
		}
		return backends.Record{Ref: ref, Size: backends.UnknownSize}, nil
	}
	img, ok := r.images[ref]
	if !ok {
		return backends.Record{}, &backends.Error{Op: "stat", Ref: ref, Kind: backends.NotFound}
	}
	return img.rec, nil
}

// Open streams an image. A stream keeps to the bytes it began with.
func (r *Registry) Open(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
	img, err := r.current(ctx, "open", rec)
	if err != nil {
		return nil, err
	}
	return r.stream(ctx, img, img.data), nil
}

// OpenRange streams a part of an image.
func (r *Registry) OpenRange(ctx context.Context, rec backends.Record, off, n int64) (*backends.Stream, error) {
	img, err := r.current(ctx, "open", rec)
	if err != nil {
		return nil, err
	}
	if size := int64(len(img.data)); off < 0 || n <= 0 || off > size || n > size-off {
		return nil, backends.Errorf("open", rec.Ref, backends.Invalid, "range %d+%d of %d bytes", off, n, size)
	}
	return r.stream(ctx, img, img.data[off:off+n]), nil
}

func (r *Registry) stream(ctx context.Context, img image, data []byte) *backends.Stream {
	return &backends.Stream{
		ReadCloser: &body{ctx: ctx, ref: img.rec.Ref, r: bytes.NewReader(data)},
		Size:       img.rec.Size, Digest: img.rec.Digest, Validator: img.rec.Version,
	}
}

// current gives the image that rec names if it is still that version.
func (r *Registry) current(ctx context.Context, op string, rec backends.Record) (image, error) {
	if err := ended(ctx, op, rec.Ref); err != nil {
		return image{}, err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.find(op, rec)
}

// find is current for a caller that holds mu.
func (r *Registry) find(op string, rec backends.Record) (image, error) {
	img, ok := r.images[r.spell(rec.Ref)]
	switch {
	case !ok:
		return image{}, &backends.Error{Op: op, Ref: rec.Ref, Kind: backends.NotFound}
	case img.rec.Version != rec.Version:
		return image{}, &backends.Error{Op: op, Ref: rec.Ref, Kind: backends.Stale}
	}
	return img, nil
}

// Push stores what src holds, in one step once all of it has been read.
func (r *Registry) Push(ctx context.Context, ref backends.Ref, src backends.Source, report func(sent int64)) (backends.Record, error) {
	if err := ref.Check(); err != nil {
		return backends.Record{}, err
	}
	if ref.IsCollection() {
		return backends.Record{}, backends.Errorf("push", ref, backends.Invalid, "no image named")
	}
	data := make([]byte, src.Size())
	const step = 1 << 20
	for off := int64(0); off < src.Size(); {
		if err := ended(ctx, "push", ref); err != nil {
			return backends.Record{}, err
		}
		part := data[off:min(off+step, src.Size())]
		n, err := src.ReadAt(part, off)
		if n < len(part) {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return backends.Record{}, backends.Errorf("push", ref, backends.Corrupt, "reading the image: %w", err)
		}
		if off += int64(n); report != nil {
			report(off)
		}
	}
	img := r.imageOf(ref, data)
	if sum := sha256.Sum256(data); backends.SHA256(sum[:]) != src.Digest() {
		return backends.Record{}, backends.Errorf("push", ref, backends.Corrupt, "the bytes are not those of %v", src.Digest())
	}
	if err := ended(ctx, "push", ref); err != nil {
		return backends.Record{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.images[img.rec.Ref].frozen {
		return backends.Record{}, &backends.Error{Op: "push", Ref: ref, Kind: backends.Frozen}
	}
	r.store(img)
	return img.rec, nil
}

// Delete takes an image away if it is still rec's version.
func (r *Registry) Delete(ctx context.Context, rec backends.Record) error {
	if err := ended(ctx, "delete", rec.Ref); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	img, err := r.find("delete", rec)
	if err != nil {
		return err
	}
	if img.frozen {
		return &backends.Error{Op: "delete", Ref: rec.Ref, Kind: backends.Frozen}
	}
	delete(r.images, img.rec.Ref)
	return nil
}

// Move renames an image if it is still rec's version.
func (r *Registry) Move(ctx context.Context, rec backends.Record, to backends.Ref) (backends.Record, error) {
	if err := ended(ctx, "move", rec.Ref); err != nil {
		return backends.Record{}, err
	}
	if err := to.Check(); err != nil {
		return backends.Record{}, err
	}
	if to.IsCollection() {
		return backends.Record{}, backends.Errorf("move", to, backends.Invalid, "no image named")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	img, err := r.find("move", rec)
	if err != nil {
		return backends.Record{}, err
	}
	to = r.spell(to)
	if img.frozen {
		return backends.Record{}, &backends.Error{Op: "move", Ref: rec.Ref, Kind: backends.Frozen}
	}
	if r.images[to].frozen {
		return backends.Record{}, &backends.Error{Op: "move", Ref: to, Kind: backends.Frozen}
	}
	delete(r.images, img.rec.Ref)
	img.rec.Ref = to
	r.store(img)
	return img.rec, nil
}

// ended gives the error of an operation whose context is over, or nil.
func ended(ctx context.Context, op string, ref backends.Ref) error {
	err := ctx.Err()
	if err == nil {
		return nil
	}
	return &backends.Error{Op: op, Ref: ref, Kind: backends.KindOf(err), Err: err}
}

// body reads until its context ends.
type body struct {
	ctx context.Context
	ref backends.Ref
	r   *bytes.Reader
}

func (b *body) Read(p []byte) (int, error) {
	if err := ended(b.ctx, "open", b.ref); err != nil {
		return 0, err
	}
	return b.r.Read(p)
}

func (b *body) Close() error { return nil }

// The capabilities, checked when this compiles.
var _ interface {
	backends.Backend
	backends.RangeOpener
	backends.Pusher
	backends.Deleter
	backends.Mover
	backends.TreeLister
	backends.Aged
} = (*Registry)(nil)
