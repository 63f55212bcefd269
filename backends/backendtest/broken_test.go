package backendtest

import (
	"bytes"
	"context"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/mem"
)

const canary = "canary-5f1d-secret"

// broken is a registry in memory with the promises that a test breaks. A nil
// func keeps the promise.
type broken struct {
	*mem.Registry
	collections func(ctx context.Context) iter.Seq2[string, error]
	images      func(ctx context.Context, collection string) iter.Seq2[backends.Record, error]
	tree        func(ctx context.Context) iter.Seq2[backends.Record, error]
	stat        func(ctx context.Context, ref backends.Ref) (backends.Record, error)
	open        func(ctx context.Context, rec backends.Record) (*backends.Stream, error)
	openRange   func(ctx context.Context, rec backends.Record, off, n int64) (*backends.Stream, error)
	push        func(ctx context.Context, ref backends.Ref, src backends.Source, report func(int64)) (backends.Record, error)
	del         func(ctx context.Context, rec backends.Record) error
	move        func(ctx context.Context, rec backends.Record, to backends.Ref) (backends.Record, error)
	close       func() error
	local       func(ctx context.Context, rec backends.Record) (*os.File, error)
	folder      string // of the local files
}

func (b *broken) Collections(ctx context.Context) iter.Seq2[string, error] {
	if b.collections != nil {
		return b.collections(ctx)
	}
	return b.Registry.Collections(ctx)
}

func (b *broken) Images(ctx context.Context, collection string) iter.Seq2[backends.Record, error] {
	if b.images != nil {
		return b.images(ctx, collection)
	}
	return b.Registry.Images(ctx, collection)
}

func (b *broken) Tree(ctx context.Context) iter.Seq2[backends.Record, error] {
	if b.tree != nil {
		return b.tree(ctx)
	}
	return b.Registry.Tree(ctx)
}

func (b *broken) Stat(ctx context.Context, ref backends.Ref) (backends.Record, error) {
	if b.stat != nil {
		return b.stat(ctx, ref)
	}
	return b.Registry.Stat(ctx, ref)
}

func (b *broken) Open(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
	if b.open != nil {
		return b.open(ctx, rec)
	}
	return b.Registry.Open(ctx, rec)
}

func (b *broken) OpenRange(ctx context.Context, rec backends.Record, off, n int64) (*backends.Stream, error) {
	if b.openRange != nil {
		return b.openRange(ctx, rec, off, n)
	}
	return b.Registry.OpenRange(ctx, rec, off, n)
}

func (b *broken) Push(ctx context.Context, ref backends.Ref, src backends.Source, report func(int64)) (backends.Record, error) {
	if b.push != nil {
		return b.push(ctx, ref, src, report)
	}
	return b.Registry.Push(ctx, ref, src, report)
}

func (b *broken) Delete(ctx context.Context, rec backends.Record) error {
	if b.del != nil {
		return b.del(ctx, rec)
	}
	return b.Registry.Delete(ctx, rec)
}

func (b *broken) Move(ctx context.Context, rec backends.Record, to backends.Ref) (backends.Record, error) {
	if b.move != nil {
		return b.move(ctx, rec, to)
	}
	return b.Registry.Move(ctx, rec, to)
}

func (b *broken) Close() error {
	if b.close != nil {
		return b.close()
	}
	return nil
}

// OpenLocal gives a file of the image's bytes.
func (b *broken) OpenLocal(ctx context.Context, rec backends.Record) (*os.File, error) {
	if b.local != nil {
		return b.local(ctx, rec)
	}
	file, err := b.file(ctx, rec)
	if err != nil {
		return nil, err
	}
	return os.Open(file)
}

func (b *broken) file(ctx context.Context, rec backends.Record) (string, error) {
	st, err := b.Registry.Open(ctx, rec)
	if err != nil {
		return "", err
	}
	data, err := drain(st)
	if err != nil {
		return "", err
	}
	file := filepath.Join(b.folder, rec.Version)
	return file, os.WriteFile(file, data, 0o600)
}

// everyImage changes the listings of images.
func (b *broken) everyImage(change func(seq iter.Seq2[backends.Record, error]) iter.Seq2[backends.Record, error]) {
	b.images = func(ctx context.Context, c string) iter.Seq2[backends.Record, error] {
		return change(b.Registry.Images(ctx, c))
	}
}

// changeRecord changes the records that Stat gives of images.
func (b *broken) changeRecord(change func(rec *backends.Record)) {
	b.stat = func(ctx context.Context, ref backends.Ref) (backends.Record, error) {
		rec, err := b.Registry.Stat(ctx, ref)
		if err == nil && !ref.IsCollection() {
			change(&rec)
		}
		return rec, err
	}
}

// changeStream changes the streams that Open gives.
func (b *broken) changeStream(change func(st *backends.Stream)) {
	b.open = func(ctx context.Context, rec backends.Record) (*backends.Stream, error) {
		st, err := b.Registry.Open(ctx, rec)
		if err == nil {
			change(st)
		}
		return st, err
	}
}

// current is rec as it would be now.
func (b *broken) current(rec backends.Record) backends.Record {
	if now, err := b.Registry.Stat(context.Background(), rec.Ref); err == nil {
		return now
	}
	return rec
}

// instead gives st with other bytes.
func instead(st *backends.Stream, err error, r func(io.Reader) io.Reader) (*backends.Stream, error) {
	if err != nil {
		return nil, err
	}
	out := *st
	out.ReadCloser = struct {
		io.Reader
		io.Closer
	}{r(st.ReadCloser), st}
	return &out, nil
}

// breakage is one promise broken, and the part that has to notice.
type breakage struct {
	part, promise string
	do            func(b *broken)
}

func breakages() []breakage {
	return slices.Concat(listingBreakages(), readingBreakages(), writingBreakages())
}

// nowReader reads whatever the image is at the time.
type nowReader struct {
	b   *broken
	ref backends.Ref
	off int64
}

func (r *nowReader) Read(p []byte) (int, error) {
	data, _ := r.b.Bytes(r.ref)
	n, err := bytes.NewReader(data).ReadAt(p, r.off)
	r.off += int64(n)
	return n, err
}

// harness makes the backend that breaks a promise; nil breaks none.
func (x breakage) harness() Harness {
	return memHarness(func(t testing.TB, r *mem.Registry) backends.Backend {
		b := &broken{Registry: r, folder: t.TempDir()}
		if x.do != nil {
			x.do(b)
		}
		return b
	})
}

// Every part of the suite notices what it is there to notice, and nothing else.
func TestEveryPartBites(t *testing.T) {
	bitten := map[string]bool{}
	for _, x := range breakages() {
		t.Run(x.part+"/"+x.promise, func(t *testing.T) {
			failures, ran := runPart(t, x.part, x.harness())
			if !ran {
				t.Fatal("there is no such part, or it was skipped")
			}
			if len(failures) == 0 {
				t.Error("the suite did not notice")
			}
			for _, f := range failures {
				t.Log("noticed: ", f)
				if strings.Contains(f, canary) {
					t.Error("the suite shows a secret itself")
				}
			}
			bitten[x.part] = true
		})
	}
	for _, p := range parts() {
		if !bitten[p.name] {
			t.Errorf("nothing shows that the part %s can fail", p.name)
		}
		failures, ran := runPart(t, p.name, breakage{}.harness())
		if !ran || len(failures) > 0 {
			t.Errorf("%s fails a backend that breaks nothing (ran: %v): %q", p.name, ran, failures)
		}
	}
}

// Where deletes are known to have no effect, one that says so passes, and one
// that reports success does not.
func TestDeleteBroken(t *testing.T) {
	for name, test := range map[string]struct {
		do    func(b *broken)
		sound bool
	}{
		"says so": {func(b *broken) {
			b.del = func(ctx context.Context, rec backends.Record) error {
				if err := ctx.Err(); err != nil {
					return err
				}
				return &backends.Error{Op: "delete", Ref: rec.Ref, Kind: backends.Unsupported}
			}
		}, true},
		"reports success": {func(b *broken) {
			b.del = func(ctx context.Context, _ backends.Record) error { return ctx.Err() }
		}, false},
		"works": {func(*broken) {}, false},
	} {
		h := breakage{do: test.do}.harness()
		h.DeleteBroken = "a known fault"
		if failures, _ := runPart(t, "Delete", h); (len(failures) == 0) != test.sound {
			t.Errorf("a delete that %s: %q", name, failures)
		}
	}
}
