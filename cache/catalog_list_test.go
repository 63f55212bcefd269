package cache

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/mem"
)

func TestCatalogManyCallersOneRequest(t *testing.T) {
	eachKind(t, mem.Options{}, func(t *testing.T, b *bench) {
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*time.Millisecond)
				defer cancel()
				b.Images(ctx, "vsoch")
			})
		}
		wg.Wait()
		synctest.Wait()
		if n := b.count.Calls(); n > 2 {
			t.Errorf("%v", b.count)
		}
	})
}

// TestCatalogOutage: a dead registry is left alone, and old listings serve.
func TestCatalogOutage(t *testing.T) {
	eachKind(t, mem.Options{}, func(t *testing.T, b *bench) {
		b.dirs()
		want := b.ls("vsoch")
		down := backends.Errorf("list", backends.Ref{}, backends.Unavailable, "connection refused")
		alive := b.set
		dead := &deadBackend{err: down}
		b.set = backends.Set{Backend: dead, Pusher: alive.Pusher}
		if alive.Tree != nil {
			b.set.Tree = dead
		}
		time.Sleep(2 * b.ttl)
		b.remount()
		for range 100 {
			b.want("ls", b.ls("vsoch"), want)
			b.want("dirs", b.dirs(), "a/b vsoch")
			if _, err := b.find("vsoch/hello:1"); err != nil {
				t.Fatal(err)
			}
		}
		if dead.calls > 2 {
			t.Errorf("a dead registry was asked %d times", dead.calls)
		}
		if _, err := b.find("vsoch/unknown"); backends.KindOf(err) != backends.Unavailable {
			t.Error("nobody can say that it is absent:", err)
		}
		if n := strings.Count(b.log.String(), "gives no listing"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, b.log)
		}
		before := dead.calls
		for range 60 { // an hour
			time.Sleep(time.Minute)
			b.ls("vsoch")
		}
		if n := dead.calls - before; n < 3 || n > 20 {
			t.Errorf("asked %d times in an hour of outage", n)
		}
		if err := b.Refresh(t.Context(), ""); backends.KindOf(err) != backends.Unavailable {
			t.Error(err)
		}
		b.want("ls after a refresh that failed", b.ls("vsoch"), want)

		dead.err = nil
		dead.alive = alive
		b.reg.Put(ref("vsoch/back:1"), []byte("back"))
		time.Sleep(2 * retryMost)
		b.want("ls", b.ls("vsoch"), "back:1 "+want)
		if n := strings.Count(b.log.String(), "answers again"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, b.log)
		}

		// A registry that was never there.
		b.dir = t.TempDir()
		dead.err = down
		b.remount()
		if _, err := b.Collections(t.Context()); backends.KindOf(err) != backends.Unavailable {
			t.Error(err)
		}
		if _, err := b.Images(t.Context(), "vsoch"); backends.KindOf(err) != backends.Unavailable {
			t.Error(err)
		}
	})
}

// deadBackend answers everything with err, or passes on to alive.
type deadBackend struct {
	mu    sync.Mutex
	calls int
	err   error
	alive backends.Set
}

func (d *deadBackend) fail() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls++
	return d.err
}

func (d *deadBackend) Collections(ctx context.Context) iter.Seq2[string, error] {
	if err := d.fail(); err != nil {
		return func(yield func(string, error) bool) { yield("", err) }
	}
	return d.alive.Collections(ctx)
}

func (d *deadBackend) Images(ctx context.Context, c string) iter.Seq2[backends.Record, error] {
	if err := d.fail(); err != nil {
		return func(yield func(backends.Record, error) bool) { yield(backends.Record{}, err) }
	}
	return d.alive.Images(ctx, c)
}

func (d *deadBackend) Tree(ctx context.Context) iter.Seq2[backends.Record, error] {
	if err := d.fail(); err != nil {
		return func(yield func(backends.Record, error) bool) { yield(backends.Record{}, err) }
	}
	return d.alive.Tree.Tree(ctx)
}

func (d *deadBackend) Stat(ctx context.Context, r backends.Ref) (backends.Record, error) {
	if err := d.fail(); err != nil {
		return backends.Record{}, err
	}
	return d.alive.Stat(ctx, r)
}

func (d *deadBackend) Open(context.Context, backends.Record) (*backends.Stream, error) {
	return nil, d.fail()
}

func (d *deadBackend) Close() error { return nil }

// fakeLists lists what it is told to, odd names included.
type fakeLists struct {
	deadBackend
	recs []backends.Record
	fail error
	hang bool
}

func (f *fakeLists) Images(ctx context.Context, c string) iter.Seq2[backends.Record, error] {
	return func(yield func(backends.Record, error) bool) {
		for _, r := range f.recs {
			if !yield(r, nil) {
				return
			}
		}
		if f.hang {
			<-ctx.Done()
			yield(backends.Record{}, ctx.Err())
			return
		}
		if f.fail != nil {
			yield(backends.Record{}, f.fail)
		}
	}
}

func (f *fakeLists) Collections(context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) { yield("c", nil) }
}

func TestCatalogHostileAndPartialListings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, mem.Options{})
		fake := &fakeLists{}
		day := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600))
		img := func(image, tag, version string, created time.Time) backends.Record {
			return backends.Record{Ref: backends.Ref{Collection: "c", Image: image, Tag: tag}, Version: version, Created: created, Size: -7}
		}
		fake.recs = []backends.Record{
			img("ok", "1", "v", day), img("..", "1", "v", day), img("a\x00b", "1", "v", day), img("a/b", "1", "v", day),
			img("", "", "v", day), img("\x1b[31m", "1", "v", day), img("x", "\u202e", "v", day), img(strings.Repeat("l", 255), "1", "v", day),
			{Ref: ref("other/image:1"), Version: "v"},
			img("twice", "1", "old", day), img("twice", "1", "new", day.Add(time.Hour)), img("twice", "1", "older", day.Add(-time.Hour)),
			img("tie", "1", "b", day), img("tie", "1", "c", day), img("tie", "1", "a", day),
			img("ok", "1.2", "v", day), img("ok-2", "1", "v", day), img("ok", "10", "v", day),
		}
		b.set = backends.Set{Backend: fake}
		b.dir = t.TempDir()
		b.remount()
		want := "ok-2:1 ok:1.2 ok:1 ok:10 tie:1 twice:1"
		b.want("ls", b.ls("c"), want)
		before, _ := b.Images(t.Context(), "c")
		names := []string{}
		for _, r := range before {
			names = append(names, r.FileName())
			if r.Size != backends.UnknownSize {
				t.Error("size", r.Size)
			}
		}
		if !slices.IsSorted(names) {
			t.Error("not in the order of file names:", names)
		}
		if r, _ := b.find("c/twice:1"); r.Version != "new" {
			t.Error(r)
		}
		if r, _ := b.find("c/tie:1"); r.Version != "c" {
			t.Error(r)
		}
		if !strings.Contains(b.log.String(), "count=8") || strings.Contains(b.log.String(), "\x1b") || strings.Contains(b.log.String(), "\u202e") {
			t.Errorf("%q", b.log.String())
		}
		b.remount()
		after, _ := b.Images(t.Context(), "c")
		if fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("read back as\n%v\nnot\n%v", after, before)
		}

		// A listing that breaks off, or stalls, changes nothing.
		fake.recs = fake.recs[:1]
		fake.fail = backends.Errorf("list", backends.Ref{}, backends.Unavailable, "page 2")
		time.Sleep(2 * b.ttl)
		b.want("ls after a broken listing", b.ls("c"), want)
		fake.fail, fake.hang = nil, true
		time.Sleep(time.Hour)
		start := time.Now()
		b.want("ls while a listing stalls", b.ls("c"), want)
		if d := time.Since(start); d > listPatience {
			t.Error("waited", d)
		}
		if err := b.Refresh(t.Context(), "c"); backends.KindOf(err) != backends.Timeout {
			t.Error(err)
		}
		if d := time.Since(start); d > 3*listStall {
			t.Error("a stalled listing took", d)
		}
	})
}

func TestCatalogClose(t *testing.T) {
	defer goleak.VerifyNone(t)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, mem.Options{NoTree: true})
		b.set = backends.Set{Backend: &fakeLists{hang: true}}
		b.remount()
		go b.Images(t.Context(), "c")
		synctest.Wait()
		start := time.Now()
		b.Close()
		if time.Since(start) > 0 {
			t.Error("Close waited for a listing that stalls")
		}
		if _, err := b.Images(t.Context(), "c"); err == nil {
			t.Error("a closed catalog lists")
		}
	})
}

func TestCatalogLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("lists 100,000 records")
	}
	b := newBench(t, mem.Options{})
	const n = 100_000
	fake := &fakeLists{}
	for i := range n {
		fake.recs = append(fake.recs, backends.Record{
			Ref: backends.Ref{Collection: "c", Image: fmt.Sprintf("image-%06d", (i*7919)%n), Tag: "latest"}, Version: fmt.Sprintf("%032d", i), Size: int64(i),
		})
	}
	b.set = backends.Set{Backend: fake}
	b.remount()
	start := time.Now()
	b.ls("c")
	t.Log("first listing", time.Since(start))
	start = time.Now()
	b.remount()
	t.Log("remount", time.Since(start))
	start = time.Now()
	recs, _ := b.Images(t.Context(), "c")
	t.Log("from the index", time.Since(start))
	start = time.Now()
	for _, r := range recs {
		if _, err := b.Find(t.Context(), r.Ref); err != nil {
			t.Fatal(err)
		}
	}
	t.Log("find of each", time.Since(start))
	if len(recs) != n {
		t.Error(len(recs))
	}
}
